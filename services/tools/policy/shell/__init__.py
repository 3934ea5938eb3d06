"""The shell policy: a command line is read by a strict grammar, judged command by command, and written out anew.

What bash gets is never the text that came but what this package understood of it, with every word quoted.  So there is
no reading of it by bash that this package did not have: where the two would differ, the meaning changes and not what may
run.  What the grammar does not know is refused, never guessed.
"""
