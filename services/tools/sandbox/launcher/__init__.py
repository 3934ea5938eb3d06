"""The one single-threaded process that starts, watches, ends and reaps every sandbox; standard library only."""
