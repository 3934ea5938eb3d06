"""Content budgets by model size, as seed 001 lists them."""

from __future__ import annotations

import pytest

from services.inference.context.budgets import content_budget, parameter_billions


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen/qwen3-4b-2507", 4.0),
        ("deepseek/deepseek-r1-0528-qwen3-8b", 8.0),
        ("mlx-community/Qwen2.5-VL-3B-Instruct-4bit", 3.0),
        ("mlx-community/Qwen2.5-7B-Instruct-1M-4bit", 7.0),
        ("llama-3.2-1b-instruct", 1.0),
        ("EleutherAI/pythia-6.9b", 6.9),
        ("pythia-160m", 0.16),
        ("gemma-3n-e4b", 4.0),
        ("qwen3-30b-a3b", 30.0),
        ("mixtral-8x7b", 7.0),
        ("llama3.1:8b", 8.0),
        ("model-4bit", None),
        ("gpt-4o", None),
        ("local-model", None),
        ("default_model", None),
    ],
)
def test_a_size_is_read_from_the_name(name: str, billions: float | None) -> None:
    assert parameter_billions(name) == billions


@pytest.mark.parametrize(
    ("name", "context", "budget"),
    [
        ("llama-3.2-1b", 32768, 550),
        ("qwen2.5-3b", None, 2600),
        ("qwen3-4b-2507", 4096, 2600),
        ("qwen3-8b", None, 6700),
        ("gpt-oss-20b", 4096, 6700),
        ("local-model", None, 550),
        ("local-model", 2048, 550),
        ("local-model", 4096, 2600),
        ("local-model", 8192, 6700),
    ],
)
def test_the_budget_follows_the_size_and_else_the_context(
    name: str, context: int | None, budget: int
) -> None:
    assert content_budget(name, context) == budget
