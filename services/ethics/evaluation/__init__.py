"""How well the judges judge labelled texts, as a report that shows every miss."""
