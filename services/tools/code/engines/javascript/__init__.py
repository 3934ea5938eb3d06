"""JavaScript: a syntax tree, the flow of data through it, and what calls and settings say."""
