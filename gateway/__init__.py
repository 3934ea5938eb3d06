"""The gateway: the OpenAI-compatible API, the REST bridge of every RPC, API keys, and the pipeline of one request."""
