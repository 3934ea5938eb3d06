"""Completions, embeddings and rankings as values: what is asked and what comes back.  Pure; protobuf stays in the servicer.

A completion's events are a chat's (`services.inference.chat`): a text is the same thing however it was asked for.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

from services.inference.chat import Sampling, Usage


@dataclass(frozen=True, slots=True)
class CompleteCall:
    """Everything that determines one completion but the backend and its model."""

    prompt: str
    suffix: str = ""
    """Text after the gap; empty for plain continuation."""
    sampling: Sampling = field(default_factory=Sampling)
    stream: bool = False

    def filled(self, defaults: Sampling) -> CompleteCall:
        """Take how tokens are drawn from `defaults` where this says nothing."""
        sampling = self.sampling.filled(defaults)
        return self if sampling is self.sampling else replace(self, sampling=sampling)


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """Everything that determines one embedding call but the backend and its model."""

    inputs: tuple[str, ...]
    dimensions: int | None = None
    """Length of the vectors wanted; None for the model's own."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector of single-precision numbers per input, in order, all of one length and finite."""

    values: tuple[array[float], ...]
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class RerankCall:
    """Everything that determines one ranking but the backend and its model."""

    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """One finite score per document, in the documents' order; higher is better, comparable within one reply only."""

    values: tuple[float, ...]
    usage: Usage = field(default_factory=Usage)
