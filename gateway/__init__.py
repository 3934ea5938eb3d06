"""The gateway: the OpenAI-compatible API, the REST bridge of every RPC, API keys, and the pipeline of one request."""

import services  # noqa: F401 - how gRPC waits is chosen there, before anything imports gRPC
