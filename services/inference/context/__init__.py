"""How many tokens a prompt has, and how a conversation is made to fit a model's context."""
