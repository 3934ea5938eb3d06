"""The ethics service: judges requests, actions and outputs by the Five Laws and signs clearances."""
