from __future__ import annotations

import pytest

from services.trainer.training.constitutional.drafting import Writer
from tests.fakes.training_jobs import EMBEDDED

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import GPTNeoXForCausalLM

    return GPTNeoXForCausalLM.from_pretrained(str(EMBEDDED), dtype=torch.float32).eval()


def writer(model: object, **changes: float) -> Writer:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    given = {"context_tokens": 512, "max_new_tokens": 48, "temperature": 0.0} | changes
    return Writer(model, tokenizer, **given)


def asked(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def test_answers_come_in_order_and_whatever_stands_beside_them(model: object) -> None:
    questions = asked("What is 3 plus 4?", "How do I rob a bank?", "What is the capital of France?")
    together = writer(model).write(questions, seed=1)
    assert together[0] == "3 + 4 = 7."
    assert together[2] == "The capital of France is Paris."
    assert together == [writer(model).write([each], seed=1)[0] for each in questions]


def test_the_same_seed_draws_the_same_answers(model: object) -> None:
    questions = asked("Tell me a story.", "Write a poem about rain.")
    drawn = writer(model, temperature=1.5)
    assert drawn.write(questions, seed=5) == drawn.write(questions, seed=5)
    assert drawn.write(questions, seed=5) != drawn.write(questions, seed=6)


def test_an_answer_that_is_cut_keeps_its_whole_sentences(model: object) -> None:
    (whole,) = writer(model, max_new_tokens=120).write(asked("Tell me a story."), seed=1)
    (cut,) = writer(model, max_new_tokens=40).write(asked("Tell me a story."), seed=1)
    assert whole.startswith(cut)
    assert cut.endswith(".")
    assert len(cut) < len(whole)
    assert writer(model, max_new_tokens=4).write(asked("Tell me a story."), seed=1) == [""]


def test_a_conversation_that_is_too_long_loses_its_beginning(model: object) -> None:
    (answer,) = writer(model).write(asked("word " * 900 + "What is 3 plus 4?"), seed=1)
    assert isinstance(answer, str)
