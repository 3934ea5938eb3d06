"""How Python source is read: a forgiving parser, and an abstract interpreter that follows names, constants and tainted data."""
