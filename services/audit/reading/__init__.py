"""Reading the log: queries, payloads for a reason, live feeds, and what is missing in it."""
