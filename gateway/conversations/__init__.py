"""Stored conversations: the responses of `/v1/responses` and the sessions of the SDK, encrypted by person, with an end."""

from gateway.conversations import tables as tables
