from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from services.common.memory import give_back


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    give_back()


def test_the_whole_heap_is_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=kept.append))
    give_back()
    assert kept == [0]
