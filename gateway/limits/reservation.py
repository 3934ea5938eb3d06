"""Sets aside what a request may use before it is carried out, and settles what it did use.

Nothing is checked first and counted later: each count is added to atomically and given back when it is over its limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from gateway.background import Background
from gateway.errors import INSUFFICIENT_QUOTA
from gateway.keys import ApiKey
from gateway.limits.budgets import Budgets, Charge, OverBudgetError
from gateway.limits.counters import Counters
from gateway.limits.estimates import Estimate, tokens_in_bytes, tokens_of
from gateway.limits.key_limits import Unit
from gateway.limits.prices import Prices
from gateway.limits.usage import UsageBook, Used
from kala.common.v1 import usage_pb2
from kala.errors import KalaError, ResourceExhaustedError

if TYPE_CHECKING:
    from gateway.acts import Conclusion

WINDOW_SECONDS: Final = 60
REMEMBER_SECONDS: Final = 2 * WINDOW_SECONDS
"""A count is forgotten when no settlement of its minute can come that matters."""

BUSY_RETRY_SECONDS: Final = 1.0


class OverLimitError(ResourceExhaustedError):
    """A key is over one of its limits; `headers` tell how each of them stands."""

    def __init__(self, message: str, *, headers: Mapping[str, str], reason: str | None = None,
                 retry_after_seconds: float | None = None) -> None:  # fmt: skip
        super().__init__(message, reason=reason, retry_after_seconds=retry_after_seconds)
        self.headers = headers


@dataclass(slots=True)
class Reservation:
    """What one request has set aside. Settled, or given back whole where it failed, or kept whole where nobody knows."""

    key: ApiKey
    estimate: Estimate
    headers: dict[str, str] = field(default_factory=dict)
    """How the key's limits stand, in OpenAI's words."""
    tokens: int = 0
    charges: list[Charge] = field(default_factory=list)
    release: list[Callable[[], Awaitable[object]]] = field(default_factory=list)
    """Gives the place back."""
    tokens_name: str = ""
    requests_name: str = ""
    settled: Settlement | None = None
    given_bytes: int = 0
    """Of the model's words that have left so far: who leaves before the count comes has used them."""
    more: Callable[[Estimate], Awaitable[None]] | None = None
    """The limiter's way to set aside more."""

    async def extend(self, estimate: Estimate) -> None:
        """Set aside more for a request that goes on, or raise OverLimitError and set nothing more aside."""
        if self.more is not None:
            await self.more(estimate)

    def settle(self, usage: usage_pb2.Usage | None, *, model: str = "", is_allowed: bool = True) -> None:
        """Say what was used: None, or a field that is unset, where the backend did not count, keeps the estimate.

        `model` is the one that answered; empty where none did.
        """
        input_tokens, output_tokens = tokens_of(usage, self.at_least)
        self.settled = Settlement(model, is_allowed, input_tokens, output_tokens)

    def settle_refused(self, stage: str) -> None:
        """Say that a judgement did not allow it: the `request`, before any model was asked, or the `output`."""
        if stage == "request":
            self.settle_nothing(is_allowed=False)
        else:
            self.settle(None, is_allowed=False)

    @property
    def at_least(self) -> Estimate:
        """What was set aside, or what was given where that is more."""
        given = max(self.estimate.output_tokens or 0, tokens_in_bytes(self.given_bytes))
        return replace(self.estimate, output_tokens=given)

    def conclude(self, conclusion: Conclusion) -> None:
        """Settle a chat, also one that failed: what failed uncounted has used what was given of it, or nothing."""
        if conclusion.stage == "output":
            # Without the words of a refusal, which are nobody's tokens.
            given = conclusion.answer.size - len(conclusion.closing_text.encode())
            self.given_bytes = max(self.given_bytes, given)
        if conclusion.usage is None and (conclusion.stage == "request" or conclusion.error is not None):
            self.settled = self.failed(conclusion.served.model, is_allowed=conclusion.is_allowed)
        else:
            self.settle(conclusion.usage, model=conclusion.served.model, is_allowed=conclusion.is_allowed)

    def settle_nothing(self, *, is_allowed: bool = True) -> None:
        """Say that no model was asked."""
        self.settled = Settlement("", is_allowed, 0, 0)

    def failed(self, model: str = "", *, is_allowed: bool = True) -> Settlement:
        """Give what a request has used that failed uncounted: nothing before its first word."""
        if not self.given_bytes:
            return Settlement("", is_allowed, 0, 0)
        given = tokens_in_bytes(self.given_bytes)
        return Settlement(model, is_allowed, self.estimate.input_tokens, given)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a request used."""

    model: str
    is_allowed: bool
    input_tokens: int
    output_tokens: int


class Limiter:
    """Keeps every key within its limits; one per process."""

    def __init__(
        self,
        *,
        counters: Counters,
        budgets: Budgets,
        book: UsageBook,
        prices: Prices,
        background: Background,
        default_output_tokens: int,
        now: Callable[[], datetime],
    ) -> None:
        self._counters = counters
        self._budgets = budgets
        self.book = book
        self._prices = prices
        self._background = background
        self._default_output_tokens = default_output_tokens
        self._now = now

    async def reserve(self, key: ApiKey, estimate: Estimate) -> Reservation:
        """Set aside what a request may use, or set nothing aside and raise OverLimitError."""
        estimate = self._whole(estimate)
        reservation = Reservation(key, estimate)
        reservation.more = partial(self._extend, reservation)
        limits = key.limits
        if not (limits.rates or limits.budgets):
            return reservation
        try:
            await self._enter(reservation)
            await self._count_request(reservation)
            await self._count_tokens(reservation)
            await self._charge(reservation)
        except BaseException:
            await asyncio.shield(self._background.keep(self._undo(reservation)))
            raise
        return reservation

    async def close(self, reservation: Reservation, *, actor: str, has_failed: bool) -> None:
        """Settle what was said to be used; where the request failed before anyone said so, what was given of it."""
        settled = reservation.settled
        if settled is None and has_failed and reservation.given_bytes:
            settled = reservation.failed()
        elif settled is None and not has_failed and reservation.estimate.input_tokens:
            # Broken off on the way, so perhaps used: what was set aside stays, and more where more was given.
            estimate = reservation.at_least
            settled = Settlement("", True, estimate.input_tokens, estimate.output_tokens or 0)
        if settled is not None:
            self._note(reservation, settled, actor)
        if reservation.release or reservation.tokens_name or reservation.charges:
            # Finished also when the client goes away meanwhile.
            await asyncio.shield(self._background.keep(self._settle(reservation, settled)))

    def _whole(self, estimate: Estimate) -> Estimate:
        if estimate.output_tokens is not None:
            return estimate
        return Estimate(estimate.input_tokens, self._default_output_tokens, estimate.model)

    async def _extend(self, reservation: Reservation, estimate: Estimate) -> None:
        # Carried through also when the client goes away meanwhile: what is set aside must be known to be settled.
        await asyncio.shield(self._background.keep(self._add(reservation, self._whole(estimate))))

    async def _add(self, reservation: Reservation, estimate: Estimate) -> None:
        before, output_tokens = reservation.estimate, estimate.output_tokens or 0
        tokens, name = estimate.input_tokens + output_tokens, ""
        limit = reservation.key.limits.tokens_per_minute
        if limit is not None and reservation.tokens_name:
            name = await self._count(reservation, "tokens", tokens, limit)
        amounts = self._amounts(estimate.model, estimate.input_tokens, output_tokens)
        # The request is counted already, and in the windows in which it began.
        amounts[Unit.REQUESTS] = 0
        charges = [replace(charge, amount=amounts[charge.budget.unit]) for charge in reservation.charges]
        try:
            await self._reserve_charges(reservation, [charge for charge in charges if charge.amount])
        except BaseException:
            if name:
                await self._counters.add(name, -tokens, seconds=REMEMBER_SECONDS)
            raise
        reservation.charges = [
            replace(first, amount=first.amount + added.amount)
            for first, added in zip(reservation.charges, charges, strict=True)
        ]
        reservation.tokens += tokens
        reservation.tokens_name = name or reservation.tokens_name
        reservation.estimate = replace(
            before,
            input_tokens=before.input_tokens + estimate.input_tokens,
            output_tokens=(before.output_tokens or 0) + output_tokens,
        )

    async def _enter(self, reservation: Reservation) -> None:
        key, places = reservation.key, reservation.key.limits.concurrent
        if places is None:
            return
        name, holder = f"{key.id}:concurrent", secrets.token_hex(8)
        if not await self._counters.enter(name, holder, places=places):
            raise OverLimitError(
                f"the API key {key.prefix}… runs {places} requests at a time, which is its limit; wait for one to end",
                headers={},
                retry_after_seconds=BUSY_RETRY_SECONDS,
            )
        reservation.release.append(lambda: self._counters.leave(name, holder))

    async def _count_request(self, reservation: Reservation) -> None:
        limit = reservation.key.limits.requests_per_minute
        if limit is not None:
            reservation.requests_name = await self._count(reservation, "requests", 1, limit)

    async def _count_tokens(self, reservation: Reservation) -> None:
        limit, estimate = reservation.key.limits.tokens_per_minute, reservation.estimate
        reservation.tokens = estimate.input_tokens + (estimate.output_tokens or 0)
        if limit is not None and reservation.tokens:
            reservation.tokens_name = await self._count(reservation, "tokens", reservation.tokens, limit)

    async def _count(self, reservation: Reservation, unit: str, amount: int, limit: int) -> str:
        """Add to this minute's count of a unit, and give the count's name."""
        seconds = self._now().timestamp()
        window = int(seconds // WINDOW_SECONDS)
        left = (window + 1) * WINDOW_SECONDS - seconds
        name = f"{reservation.key.id}:{unit}:{window}"
        count = await self._counters.add(name, amount, seconds=REMEMBER_SECONDS)
        is_over = count > limit
        if is_over:
            count = await self._counters.add(name, -amount, seconds=REMEMBER_SECONDS)
        reservation.headers |= {
            f"x-ratelimit-limit-{unit}": str(limit),
            f"x-ratelimit-remaining-{unit}": str(max(0, limit - count)),
            f"x-ratelimit-reset-{unit}": f"{max(0.0, left):.3f}s",
        }
        if is_over:
            prefix, cure = reservation.key.prefix, "try again when the minute is over"
            if amount > limit:
                cure = "shorten the request, or ask for fewer tokens with `max_completion_tokens`"
            raise OverLimitError(
                f"the API key {prefix}… may use {limit} {unit} a minute, and has {max(0, limit - count)} left of them "
                f"where this needs {amount}; {cure}",
                headers=reservation.headers,
                retry_after_seconds=math.ceil(left),
            )
        return name

    async def _charge(self, reservation: Reservation) -> None:
        key, estimate, now = reservation.key, reservation.estimate, self._now()
        if not key.limits.budgets:
            return
        amounts = self._amounts(estimate.model, estimate.input_tokens, estimate.output_tokens or 0)
        charges = [
            Charge(key.id, budget, budget.period.window(now), amounts[budget.unit])
            for budget in key.limits.budgets
            # Also one of nothing where a model is asked: another model than the one asked for may have a price.
            if amounts[budget.unit] or estimate.input_tokens
        ]
        await self._reserve_charges(reservation, charges)
        reservation.charges = charges

    async def _reserve_charges(self, reservation: Reservation, charges: list[Charge]) -> None:
        if not charges:
            return
        try:
            await self._finished(asyncio.to_thread(self._budgets.reserve, charges), charges)
        except OverBudgetError as error:
            charge = error.charge
            budget = charge.budget
            raise OverLimitError(
                f"the API key {reservation.key.prefix}… has a budget of {budget.amount} {budget.unit.value} "
                f"({budget.period.value}) and {max(0, budget.amount - error.used)} left of it, where this needs "
                f"{charge.amount}; ask an administrator for more, or ask for less",
                headers=reservation.headers,
                reason=INSUFFICIENT_QUOTA,
            ) from error

    async def _finished(self, reserving: Coroutine[object, object, None], charges: Sequence[Charge]) -> None:
        """Wait for a reservation that a thread makes; broken off, it is made all the same, and then given back."""
        task = self._background.keep(reserving)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self._background.spawn(self._taken_back(task, charges))
            raise

    async def _taken_back(self, reserving: asyncio.Task[None], charges: Sequence[Charge]) -> None:
        with contextlib.suppress(OverBudgetError, KalaError):
            await reserving
            undone = [replace(charge, amount=-charge.amount) for charge in charges]
            await asyncio.to_thread(self._budgets.correct, undone)

    def _amounts(self, model: str, input_tokens: int, output_tokens: int) -> dict[Unit, int]:
        return {
            Unit.REQUESTS: 1,
            Unit.TOKENS: input_tokens + output_tokens,
            Unit.COST_MICROS: self._prices.cost_micros(model, input_tokens, output_tokens) or 0,
        }

    def _note(self, reservation: Reservation, settled: Settlement, actor: str) -> None:
        # Where none answered, the price is of the one that was asked for, as it was when it was set aside.
        model = settled.model or reservation.estimate.model
        cost = self._prices.cost_micros(model, settled.input_tokens, settled.output_tokens)
        self.book.note(
            key_id=reservation.key.id,
            tenant=reservation.key.tenant,
            actor=actor,
            model=settled.model,
            used=Used(1, int(not settled.is_allowed), settled.input_tokens, settled.output_tokens, cost),
        )

    async def _settle(self, reservation: Reservation, settled: Settlement | None) -> None:
        """Put right what was set aside; where that fails it stays set aside, for the answer has left."""
        try:
            if settled is None:
                await self._give_back(reservation, with_request=False)
            else:
                await self._put_right(reservation, settled)
        except KalaError as error:
            structlog.get_logger().error("what a request used is not settled", reason=error.message)
        finally:
            await _leave(reservation)

    async def _put_right(self, reservation: Reservation, settled: Settlement) -> None:
        used = settled.input_tokens + settled.output_tokens
        if reservation.tokens_name and used != reservation.tokens:
            await self._counters.add(
                reservation.tokens_name, used - reservation.tokens, seconds=REMEMBER_SECONDS
            )
        model = settled.model or reservation.estimate.model
        amounts = self._amounts(model, settled.input_tokens, settled.output_tokens)
        await self._correct(reservation, lambda charge: amounts[charge.budget.unit] - charge.amount)

    async def _undo(self, reservation: Reservation) -> None:
        try:
            await self._give_back(reservation, with_request=True)
        except KalaError as error:
            structlog.get_logger().error("what was set aside is not given back", reason=error.message)
        finally:
            await _leave(reservation)

    async def _give_back(self, reservation: Reservation, *, with_request: bool) -> None:
        """Undo what was set aside; a request that was let in stays one of its minute and of its budgets."""
        if reservation.tokens_name:
            await self._counters.add(reservation.tokens_name, -reservation.tokens, seconds=REMEMBER_SECONDS)
        if with_request and reservation.requests_name:
            await self._counters.add(reservation.requests_name, -1, seconds=REMEMBER_SECONDS)
        await self._correct(
            reservation, lambda charge: 0 if charge.budget.unit is Unit.REQUESTS else -charge.amount
        )

    async def _correct(self, reservation: Reservation, difference: Callable[[Charge], int]) -> None:
        corrections = [
            Charge(charge.key_id, charge.budget, charge.window, difference(charge))
            for charge in reservation.charges
            if difference(charge)
        ]
        if corrections:
            await asyncio.to_thread(self._budgets.correct, corrections)


async def _leave(reservation: Reservation) -> None:
    for release in reservation.release:
        await release()
