"""Limits of a run: the caller's where it says something, the policy's elsewhere, never above the policy's maximum."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.errors import InvalidArgumentError
from kala.tools.v1 import execution_pb2
from services.tools import wire
from services.tools.limits import LEAST, AskedLimits, merged
from services.tools.sandbox.model import Limits

DEFAULTS = Limits(30.0, 20.0, 2**29, 64, 256, 2**26, 4096, 2**25, 2**20, 32, 2**24)
MAXIMUM = Limits(900.0, 900.0, 2**32, 512, 4096, 2**30, 65536, 2**28, 2**24, 256, 2**26)


def test_a_caller_that_says_nothing_gets_the_defaults() -> None:
    assert merged(AskedLimits(), defaults=DEFAULTS, maximum=MAXIMUM) == DEFAULTS


@pytest.mark.parametrize("name", [field.name for field in fields(AskedLimits)])
def test_each_limit_may_be_the_maximum_and_not_more(name: str) -> None:
    most = getattr(MAXIMUM, name)
    asked = AskedLimits(**{name: most})
    assert merged(asked, defaults=DEFAULTS, maximum=MAXIMUM) == replace(DEFAULTS, **{name: most})
    contract = {"wall_seconds": "wall_time", "cpu_seconds": "cpu_time"}.get(name, name)
    with pytest.raises(InvalidArgumentError) as caught:
        merged(AskedLimits(**{name: most + 1}), defaults=DEFAULTS, maximum=MAXIMUM)
    assert caught.value.field == f"limits.{contract}"
    assert f"{most:g}" in caught.value.message


@pytest.mark.parametrize("name", ["wall_seconds", "cpu_seconds", "memory_bytes", "processes", "open_files"])
def test_less_than_any_interpreter_needs_is_refused(name: str) -> None:
    least = getattr(LEAST, name)
    with pytest.raises(InvalidArgumentError, match="must be at least"):
        merged(
            AskedLimits(**{name: least / 2 if least < 1 else least - 1}), defaults=DEFAULTS, maximum=MAXIMUM
        )


def test_no_output_and_no_artifacts_may_be_asked_for() -> None:
    asked = AskedLimits(output_bytes=0, artifacts=0, artifact_bytes=0)
    assert merged(asked, defaults=DEFAULTS, maximum=MAXIMUM).output_bytes == 0


@given(
    st.builds(
        AskedLimits,
        memory_bytes=st.none() | st.integers(2**24, 2**32),
        processes=st.none() | st.integers(1, 512),
    )
)
def test_nothing_ever_passes_the_maximum(asked: AskedLimits) -> None:
    found = merged(asked, defaults=DEFAULTS, maximum=MAXIMUM)
    assert all(getattr(found, each.name) <= getattr(MAXIMUM, each.name) for each in fields(Limits))


def test_limits_cross_the_wire_unchanged() -> None:
    asked = wire.asked_limits(wire.limits(DEFAULTS))
    assert merged(asked, defaults=LEAST, maximum=MAXIMUM) == DEFAULTS


def test_a_span_that_is_none_is_named() -> None:
    message = execution_pb2.Limits()
    message.cpu_time.nanos = -1
    with pytest.raises(InvalidArgumentError, match=r"limits\.cpu_time"):
        wire.asked_limits(message)
