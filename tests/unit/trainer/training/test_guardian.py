"""KALA-Guardian on the shipped model: a head on claims and their sources, and the folder that holds it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from services.trainer.datasets.readers.chat import CLAIM_LABELS, claim_text
from services.trainer.training.recipe import Lora, Recipe
from services.trainer.training.run import run_work
from tests.fakes import training_jobs as jobs

pytestmark = [pytest.mark.torch, pytest.mark.slow]

THINGS = ("river", "castle", "road", "tower", "garden", "wall", "bridge", "house")
STATES = ("old", "long", "red", "cold", "dry", "open")


def claim(seed: int) -> dict[str, Any]:
    """What the source says of the thing decides: the same, its opposite, or nothing about it."""
    numbers = random.Random(seed)
    thing, state, label = numbers.choice(THINGS), numbers.choice(STATES), numbers.choice(CLAIM_LABELS)
    source = {
        "supported": f"Everybody knows: the {thing} is {state}.",
        "refuted": f"Nobody doubts: the {thing} is not {state}.",
        "unsure": "The visitor wrote about the weather and left.",
    }[label]
    return {"text": claim_text(f"The {thing} is {state}.", [source]), "label": label}


def test_a_guardian_tells_supported_refuted_and_unsure_apart(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer, GPTNeoXForSequenceClassification

    recipe = Recipe(
        objective="classification", labels=CLAIM_LABELS, learning_rate=3e-3, max_steps=80, batch_size=16,
        max_sequence_tokens=96,
    )  # fmt: skip
    jobs.write_dataset(tmp_path / "data", claim, rows=300)
    lora = Lora(8, 16, 0.0, ("query_key_value", "dense"))
    work = jobs.work(tmp_path, recipe=recipe, lora=lora, checkpoint_steps=1_000)
    told = run_work(work, jobs.Told())
    assert told["labels"] == list(CLAIM_LABELS)
    tokenizer = AutoTokenizer.from_pretrained(str(jobs.EMBEDDED))
    base = GPTNeoXForSequenceClassification.from_pretrained(
        str(jobs.EMBEDDED), num_labels=3, dtype=torch.float32, pad_token_id=tokenizer.eos_token_id
    )
    model = PeftModel.from_pretrained(base, str(work.folder / "adapter")).eval()
    seen = {json.loads(line)["text"] for line in (tmp_path / "data/train.jsonl").read_text().splitlines()}
    held_out = [row for row in map(claim, range(5_000, 5_400)) if row["text"] not in seen][:90]
    right = 0
    with torch.inference_mode():
        for row in held_out:
            ids = torch.tensor([tokenizer(row["text"], add_special_tokens=False)["input_ids"]])
            right += CLAIM_LABELS[int(model(input_ids=ids).logits[0].argmax())] == row["label"]
    assert right / len(held_out) >= 0.9
