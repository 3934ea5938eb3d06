"""No training line resembles a prompt that grades or tunes what is learnt from it."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from scripts.classifier.authored import DATA

EVALUATION = Path(__file__).parents[3] / "evaluation"
PROMPTS = ("ethics", "development")
# Words that say nothing of what a text is about.
COMMON = frozenset(
    [
        "a",
        "an",
        "the",
        "to",
        "of",
        "in",
        "on",
        "at",
        "for",
        "and",
        "or",
        "is",
        "are",
        "i",
        "my",
        "me",
        "you",
        "your",
        "do",
        "does",
        "how",
        "what",
        "it",
        "that",
        "this",
        "with",
        "can",
        "be",
        "as",
        "by",
        "from",
    ]
)
MIN_SHARED = 3
NEAR = 0.6


def content_words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower())) - COMMON


def near(words: frozenset[str], prompts: list[frozenset[str]], holders: dict[str, list[int]]) -> list[int]:
    """The prompts that share with these words more than NEAR of all that both hold."""
    shared = Counter(prompt for word in words for prompt in holders.get(word, ()))
    return [
        prompt
        for prompt, count in shared.items()
        if count >= MIN_SHARED and count / len(words | prompts[prompt]) >= NEAR
    ]


def test_no_training_line_is_near_a_prompt_of_the_evaluation_or_of_development() -> None:
    texts = [
        json.loads(line)["text"]
        for folder in PROMPTS
        for path in sorted((EVALUATION / folder).glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    prompts = [content_words(text) for text in texts]
    holders: dict[str, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        for word in prompt:
            holders[word].append(number)
    found = [
        f"{path.name}:{line_number}: {line[:70]!r} is near {texts[prompt][:70]!r}"
        for path in sorted(DATA.glob("*.txt"))
        for line_number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if line.startswith(("- ", "+ ", "? "))
        for prompt in near(content_words(line[2:]), prompts, holders)
    ]
    assert not found, "\n".join(found)
