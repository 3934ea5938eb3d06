"""Asks each provider the same questions, one at a time, and takes the times."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kala.errors import KalaError, NotFoundError
from kala.provider_bench.prompts import Prompt

if TYPE_CHECKING:
    from kala.client import KalaClient
    from kala.replies import ChatReply

READY: Final = "BACKEND_STATE_READY"
DEMO: Final = "demo"

WARM_UP: Final = Prompt("warm-up", "Say OK.", 8)
"""Asked first and not counted: it makes a backend load its model."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A backend that may be measured."""

    name: str
    kind: str
    url: str
    is_ready: bool
    detail: str
    is_remote: bool = False

    @classmethod
    def of(cls, backend: Mapping[str, Any]) -> Provider:  # Any: JSON
        """Read the gateway's form."""
        return cls(
            name=str(backend.get("name", "")).removeprefix("backends/"),
            kind=str(backend.get("kind", "")),
            url=str(backend.get("url") or "in process"),
            is_ready=backend.get("state") == READY,
            detail=str(backend.get("detail") or ""),
            is_remote=bool(backend.get("remote")),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One question to one provider; times in milliseconds, as the client sees them."""

    prompt: str
    outcome: str
    """`ok`, `refused` by the Five Laws, or `failed`."""
    error: str = ""
    model: str = ""
    first_text_ms: float | None = None
    total_ms: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    overhead_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A provider and its runs; the first, uncounted one apart."""

    provider: Provider
    warm_up: Run | None
    runs: tuple[Run, ...]


def select(backends: Iterable[Mapping[str, Any]], wanted: Sequence[str]) -> list[Provider]:  # Any: JSON
    """Give the providers of these names or kinds, all when none is named; NotFoundError lists what there is.

    The embedded demo is measured only by name, or when there is nothing else. A remote provider is measured only by name:
    being named is what lets the questions leave this machine.
    """
    providers = [Provider.of(backend) for backend in backends]
    if wanted:
        chosen = [each for each in providers if {each.name, each.kind} & set(wanted)]
        missing = [name for name in wanted if not any(name in {each.name, each.kind} for each in chosen)]
        if missing:
            known = ", ".join(each.name for each in providers)
            raise NotFoundError(
                f"there is no provider {missing[0]!r} in this suite; there are: {known or 'none'}"
            )
        return [each for each in chosen if each.name != DEMO or DEMO in wanted or len(chosen) == 1]
    others = [_at_home(each) for each in providers if each.name != DEMO]
    demo = [each for each in providers if each.name == DEMO]
    return others if any(each.is_ready for each in others) else others + demo


def _at_home(provider: Provider) -> Provider:
    if not provider.is_remote:
        return provider
    problem = f"is remote; --provider {provider.name} measures it and lets the questions leave this machine"
    return dataclasses.replace(provider, is_ready=False, detail=problem)


def measure(
    client: KalaClient,
    provider: Provider,
    questions: Sequence[Prompt],
    *,
    on_step: Callable[[str], None] = lambda _question: None,
    on_done: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Ask a provider everything; failures are results.

    `on_step` hears the name of each question before it is asked, `on_done` that it was answered.
    """
    if not provider.is_ready:
        return Measured(provider, None, ())
    runs: list[Run] = []
    for question in (WARM_UP, *questions):
        on_step(question.name)
        runs.append(ask(client, provider, question, clock))
        on_done()
    return Measured(provider, runs[0], tuple(runs[1:]))


def ask(client: KalaClient, provider: Provider, question: Prompt, clock: Callable[[], float]) -> Run:
    """Ask one question as a stream."""
    started = clock()
    first: float | None = None
    try:
        with client.stream(
            [{"role": "user", "content": question.text}],
            # This host alone, with the model that it has; the provider's name is what lets data leave for a remote one.
            model=f"{provider.name}/auto",
            provider=provider.kind,
            max_tokens=question.max_tokens,
            temperature=0,
        ) as answer:
            for _piece in answer:
                first = clock() if first is None else first
        reply = answer.reply
    except KalaError as error:
        return Run(question.name, "failed", error=error.message, total_ms=_ms(clock() - started))
    return _run(question, reply, None if first is None else first - started, clock() - started)


def _run(question: Prompt, reply: ChatReply, first: float | None, total: float) -> Run:
    return Run(
        question.name,
        "ok" if reply.allowed else "refused",
        model=reply.model,
        first_text_ms=None if first is None else _ms(first),
        total_ms=_ms(total),
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        overhead_ms=reply.overhead_ms,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
