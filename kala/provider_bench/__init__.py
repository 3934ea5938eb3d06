"""How fast each backend of a suite answers, measured through the gateway as a user meets it."""
