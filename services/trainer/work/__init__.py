"""What the service and the processes that do its heavy work share: orders, events, results. Imports no torch."""
