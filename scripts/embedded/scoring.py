"""Scores of a trained model: held-out combinations, unseen wordings and free prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

from scripts.embedded.dialogue import Message, Question
from scripts.embedded.numbers import TOO_HARD
from scripts.embedded.open_ended import REFUSAL, UNKNOWN
from scripts.embedded.wording import DATA, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scripts.embedded.dialogue import Curriculum

_ROWS_AT_ONCE: Final = 64
_REPLY_TOKENS: Final = 200
_SENTENCES: Final = {"@unknown": UNKNOWN, "@refusal": REFUSAL, "@hard": TOO_HARD}


@dataclass(frozen=True, slots=True)
class Failure:
    """A question whose answer was not accepted."""

    intent: str
    prompt: str
    expected: str
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """How many questions of a set were answered acceptably, in all and by intent."""

    name: str
    asked: int
    right: int
    by_intent: dict[str, tuple[int, int]]
    failures: tuple[Failure, ...]

    @property
    def share(self) -> float:
        """The accepted share, 0 to 1."""
        return self.right / self.asked


class Responder:
    """Answers conversations greedily in batches; left-padded rows are masked and give the same text."""

    def __init__(self, model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        # transformers' own annotation of generate's self does not accept its models.
        self._generate: Callable[..., Any] = model.generate  # type: ignore[misc]
        model.eval()  # type: ignore[no-untyped-call]  # transformers
        self._tokenizer = tokenizer
        tokenizer.padding_side = "left"

    def answer(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """Returns one reply per conversation, in order."""
        order = sorted(range(len(conversations)), key=lambda i: sum(len(m.content) for m in conversations[i]))
        replies = [""] * len(conversations)
        for start in range(0, len(order), _ROWS_AT_ONCE):
            chosen = order[start : start + _ROWS_AT_ONCE]
            for i, reply in zip(chosen, self._batch([conversations[i] for i in chosen]), strict=True):
                replies[i] = reply
        return replies

    @torch.no_grad()
    def _batch(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        chats = [[{"role": m.role, "content": m.content} for m in chat] for chat in conversations]
        # transformers types the return by none of its switches.
        inputs: Any = self._tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output: Any = self._generate(**inputs, do_sample=False, max_new_tokens=_REPLY_TOKENS)
        width = inputs["input_ids"].shape[1]
        return [
            text.strip() for text in self._tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        ]


def score_split(responder: Responder, curriculum: Curriculum, split: Split, count: int, seed: int) -> Score:
    """Scores `count` questions of a split, an answer being right when it equals an accepted one."""
    rng = Random(seed)
    questions = [curriculum.question(split, rng) for _ in range(count)]
    return _score(split.value, questions, responder, lambda question, reply: reply in question.accepted)


def score_free_prompts(responder: Responder) -> Score:
    """Scores the hand-written prompts, an answer being right when it holds an accepted text."""
    return _score(
        "free", free_questions(), responder, lambda q, reply: any(text in reply for text in q.accepted)
    )


def free_questions() -> list[Question]:
    """Returns the hand-written prompts; earlier turns of a conversation get the model's own answers."""
    lines = (DATA / "free_prompts.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" => ") for line in lines if line and not line.startswith("#")]
    return [
        Question(
            tuple(Message("user", turn) for turn in prompt.split(" >> ")),
            "free",
            tuple(_SENTENCES.get(text, text) for text in accepted.split("|")),
        )
        for prompt, accepted in rows
    ]


def _answer_turns(responder: Responder, questions: Sequence[Question]) -> list[str]:
    """Answers every question; user turns that follow each other are asked one by one."""
    chats: list[list[Message]] = [[] for _ in questions]
    pending = [list(question.messages) for question in questions]
    while any(pending):
        active = [i for i, rest in enumerate(pending) if rest]
        for i in active:
            _take_until_question(chats[i], pending[i])
        replies = responder.answer([chats[i] for i in active])
        for i, reply in zip(active, replies, strict=True):
            chats[i].append(Message("assistant", reply))
    return [chat[-1].content for chat in chats]


def _take_until_question(chat: list[Message], rest: list[Message]) -> None:
    chat.append(rest.pop(0))
    while rest and (chat[-1].role != "user" or rest[0].role == "assistant"):
        chat.append(rest.pop(0))


def _score(
    name: str, questions: Sequence[Question], responder: Responder, accept: Callable[[Question, str], bool]
) -> Score:
    replies = _answer_turns(responder, questions)
    asked: Counter[str] = Counter(question.intent for question in questions)
    right: Counter[str] = Counter()
    failures = []
    for question, reply in zip(questions, replies, strict=True):
        if accept(question, reply):
            right[question.intent] += 1
        else:
            prompt = " >> ".join(m.content for m in question.messages if m.role == "user")
            failures.append(Failure(question.intent, prompt, question.accepted[0], reply))
    by_intent = {intent: (right[intent], count) for intent, count in sorted(asked.items())}
    return Score(name, len(questions), sum(right.values()), by_intent, tuple(failures))
