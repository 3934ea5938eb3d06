"""Completions, embeddings and rankings of the OpenAI protocol as bytes: requests out, answers in.  Pure.

What cannot be read raises BackendFailure: a vector too few, a number that is none, an index twice.  Nothing is guessed.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson

from services.inference.backend import BackendFailure, Blame
from services.inference.backends.openai_wire import add_sampling, add_stream, read_usage
from services.inference.backends.wire_json import parse_object, string
from services.inference.chat import Usage
from services.inference.failures import failure_of_error, read_error
from services.inference.tasks import CompleteCall, Scores, Vectors

Json = dict[str, Any]  # Any: a JSON value

BATCH_TEXTS: Final = 64
"""Texts of one request to a server: enough to fill its batches, few enough that its answer stays below some megabytes."""

BATCH_CHARS: Final = 256 * 1024
"""The same for long texts; a longer one goes alone."""


def completion_body(
    call: CompleteCall, *, model: str, stream: bool, max_output_tokens: int, extra: Json | None = None
) -> bytes:
    """Write the request of a text completion; `extra` holds what only one server understands."""
    body: Json = {"model": model, "prompt": call.prompt}
    if stream:
        add_stream(body)
    add_sampling(body, call.sampling, max_output_tokens=max_output_tokens)
    return orjson.dumps(body | extra if extra else body)


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut a list of texts into what one request takes, in order."""
    start = chars = 0
    for position, text in enumerate(texts):
        is_full = position - start >= BATCH_TEXTS or chars + len(text) > BATCH_CHARS
        if is_full and position > start:
            yield texts[start:position]
            start, chars = position, 0
        chars += len(text)
    yield texts[start:]


def embeddings_body(texts: Sequence[str], *, model: str, dimensions: int | None) -> bytes:
    """Write the request of one batch."""
    body: Json = {"model": model, "input": list(texts), "encoding_format": "float"}
    if dimensions is not None:
        body["dimensions"] = dimensions
    return orjson.dumps(body)


def read_embeddings(body: bytes, *, texts: int) -> tuple[str, Vectors]:
    """Read one batch's answer: the model that it names, empty where it names none, and one vector per text, in order."""
    parsed = answer_object(body)
    placed = _by_index(parsed.get("data"), texts, "vector")
    vectors = tuple(vector(item.get("embedding")) for item in placed)
    return string(parsed.get("model")), Vectors(vectors, read_usage(parsed.get("usage")))


def rerank_body(query: str, documents: Sequence[str], *, model: str) -> bytes:
    """Write the request of a ranking; all documents come back, the best of them are chosen here."""
    return orjson.dumps(
        {"model": model, "query": query, "documents": list(documents), "top_n": len(documents)}
    )


def read_scores(body: bytes, *, documents: int) -> tuple[str, Scores]:
    """Read a ranking: the model that it names, empty where it names none, and one score per document, in order."""
    parsed = answer_object(body)
    placed = _by_index(parsed.get("results"), documents, "score")
    scores = tuple(_score(item.get("relevance_score", item.get("score"))) for item in placed)
    return string(parsed.get("model")), Scores(scores, read_usage(parsed.get("usage")))


def answer_object(body: bytes) -> Json:
    """Read a JSON object that is no error; raises BackendFailure for anything else."""
    if not body.strip():
        raise BackendFailure("EMPTY_ANSWER", "answered 200 with an empty body")
    parsed = parse_object(body)
    error = read_error(parsed)
    if error is not None:
        raise failure_of_error(200, error)
    return parsed


def vector(value: object) -> array[float]:
    """Read a vector; raises BackendFailure unless it is a list of finite numbers."""
    if not isinstance(value, list) or not value:
        raise _malformed("answered without a vector for every text")
    if isinstance(value[0], list):
        raise _malformed("answered with a vector per token; start it with a pooling, e.g. `--pooling mean`")
    try:
        read = array("f", value)
    except (TypeError, OverflowError):
        raise _malformed("answered with a vector of something other than numbers") from None
    if not math.isfinite(sum(read)):
        raise _malformed("answered with a vector of numbers that are not finite")
    return read


def joined(parts: Sequence[Vectors], *, dimensions: int | None) -> Vectors:
    """Put the batches of one call together; raises BackendFailure unless all vectors are of one length, the one asked for."""
    values = tuple(each for part in parts for each in part.values)
    lengths = sorted({len(each) for each in values})
    if len(lengths) > 1:
        raise _malformed(f"answered with vectors of different lengths ({lengths[0]} and {lengths[-1]})")
    if dimensions is not None and lengths != [dimensions]:
        raise BackendFailure(
            "DIMENSIONS_NOT_SERVED",
            "cannot do what the request asks",
            blame=Blame.CALLER,
            told=f"dimensions: the model gives vectors of {lengths[0]} numbers, not {dimensions}; "
            "leave dimensions out or choose another model",
        )
    return Vectors(values, added([part.usage for part in parts]))


def added(usages: Sequence[Usage]) -> Usage:
    """Add up what the parts of one call cost; unknown as soon as one part's cost is."""
    counts = [usage.input_tokens for usage in usages]
    known = [count for count in counts if count is not None]
    return Usage(input_tokens=sum(known) if len(known) == len(counts) else None)


def _by_index(value: object, expected: int, noun: str) -> list[Json]:
    """Put a list's objects into the order of their `index`; each place must be taken exactly once."""
    items = value if isinstance(value, list) else []
    placed: dict[object, Json] = {}
    for position, item in enumerate(items):
        if isinstance(item, dict) and isinstance(index := item.get("index", position), int):
            placed[index] = item
    if len(items) != expected or set(placed) != set(range(expected)):
        raise _malformed(f"answered without exactly one {noun} for each of {expected} texts")
    return [placed[index] for index in range(expected)]


def _score(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _malformed("answered with a score that is not a finite number")
    return float(value)


def _malformed(detail: str) -> BackendFailure:
    return BackendFailure("MALFORMED_ANSWER", detail)
