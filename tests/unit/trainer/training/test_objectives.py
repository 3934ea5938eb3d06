"""The preference loss is TRL's, and a classifier's head travels with its adapter."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kala.common.v1.adapter_pb2 import TENSOR_TYPE_F32, LoraConfig, LoraTarget
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE, require_config, require_weights
from services.trainer.training.encoding import Counts, Encoder
from services.trainer.training.recipe import Lora, Recipe
from services.trainer.training.rows import Preference
from services.trainer.training.run import run_work
from tests.fakes.training_jobs import EMBEDDED, Told, claim, preference, work

pytestmark = pytest.mark.torch
DPO = Recipe(
    objective="dpo", max_steps=4, batch_size=4, micro_batch_size=2, max_sequence_tokens=64, learning_rate=1e-3
)
ROWS = [
    ("What is 7+8?", "15.", "I do not know, and it is a long answer."),
    ("Name a colour.", "Blue is one.", "No."),
    ("Hi", "Hello!", "What do you want from me?"),
]


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


def moved_and_still():
    """The shipped model, and the same with its head's matrix moved, as training would."""
    import torch
    from transformers import AutoTokenizer, GPTNeoXForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    models = []
    for strength in (0.0, 0.02):
        model = GPTNeoXForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
        noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(5))
        model.lm_head.weight.data += strength * noise
        models.append(model.eval())
    return tokenizer, *models


def ours(tokenizer, still, moved, beta):
    import torch

    from services.trainer.training.batches import collate
    from services.trainer.training.objectives import make_objective

    rows = [Preference((("user", prompt),), chosen, rejected) for prompt, chosen, rejected in ROWS]
    pairs = Encoder(tokenizer, max_tokens=128).encode(rows, Counts())
    batch = collate([[pair] for pair in pairs], padding=0)
    with torch.no_grad():
        reference = make_objective("dpo", still, beta=beta)(batch)
        return make_objective("dpo", moved, beta=beta)(batch, reference) / len(pairs), reference


def test_the_preference_loss_is_trls(tmp_path):
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer, still, moved = moved_and_still()
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in ROWS
    ]
    config = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=3, use_cpu=True, report_to=[],
        max_length=128, disable_dropout=True, remove_unused_columns=False, bf16=False,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=moved,
        ref_model=still,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, batch)
    loss, _ = ours(tokenizer, still, moved, 0.3)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_an_unmoved_model_has_the_loss_of_a_coin(tmp_path):
    tokenizer, still, _ = moved_and_still()
    loss, reference = ours(tokenizer, still, still, 0.3)
    assert loss.item() == pytest.approx(0.693147, abs=1e-5)
    assert (reference < 0).all()


def test_preferences_are_learned_and_a_cut_run_ends_with_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    told = Told()
    run_work(work(tmp_path / "a", recipe=DPO, make=preference), told)
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "a/job/reports/metrics.jsonl").read_text().splitlines()
    ]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert losses[-1] < losses[0]
    asked: list[int] = []
    with pytest.raises(Exception, match="as asked"):
        run_work(
            work(tmp_path / "b", recipe=DPO, make=preference), Told(),
            should_stop=lambda: len(asked.append(1) or asked) == 3,
        )  # fmt: skip
    run_work(work(tmp_path / "b", recipe=DPO, make=preference), Told())
    one, other = (tmp_path / name / "job/adapter" / WEIGHTS_FILE for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_two_stages_train_one_adapter_and_a_cut_between_or_within_them_changes_nothing(tmp_path):
    from services.trainer.training.recipe import DatasetFolder, Stage
    from tests.fakes.training_jobs import write_dataset

    def both(root):
        root.mkdir(exist_ok=True)
        first = work(root)
        pairs = root / "pairs"
        if not pairs.is_dir():
            write_dataset(pairs, preference)
        stage = Stage(replace(DPO, max_steps=3), (DatasetFolder("preferences", pairs),))
        answers = Stage(replace(first.stages[0].recipe, max_steps=3), first.stages[0].datasets)
        return replace(first, stages=(answers, stage), checkpoint_steps=1)

    whole = run_work(both(tmp_path / "a"), Told())
    assert whole["steps"] == 6
    for cut in (4, 5):
        asked: list[int] = []
        with pytest.raises(Exception, match="as asked"):
            run_work(
                both(tmp_path / f"b{cut}"),
                Told(),
                should_stop=lambda a=asked, c=cut: len(a.append(1) or a) == c,
            )
        run_work(both(tmp_path / f"b{cut}"), Told())
        one, other = (tmp_path / name / "job/adapter" / WEIGHTS_FILE for name in ("a", f"b{cut}"))
        assert one.read_bytes() == other.read_bytes()


def test_a_classifier_learns_its_labels_and_keeps_its_head_in_the_adapter(tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer, GPTNeoXForSequenceClassification

    recipe = Recipe(
        objective="classification", max_steps=4, batch_size=8, micro_batch_size=8, max_sequence_tokens=64,
        learning_rate=2e-3, labels=("supported", "refuted"), validation_steps=2,
    )  # fmt: skip
    result = run_work(work(tmp_path, recipe=recipe, make=claim, lora=Lora(4, 8, 0.0)), Told())
    folder = tmp_path / "job/adapter"
    shape = LoraConfig(
        rank=4, alpha=8, tensor_type=TENSOR_TYPE_F32, full_modules=["score"],
        targets=[
            LoraTarget(module="dense", matched=4, in_features=160, out_features=160),
            LoraTarget(module="query_key_value", matched=4, in_features=160, out_features=480),
        ],
    )  # fmt: skip
    require_config("config", (folder / CONFIG_FILE).read_bytes(), shape)
    require_weights("weights", (folder / WEIGHTS_FILE).read_bytes(), shape)
    assert result["labels"] == ["supported", "refuted"]
    assert 0 < result["metrics"]["validation_loss"] < 5
    base = GPTNeoXForSequenceClassification.from_pretrained(EMBEDDED, num_labels=2, dtype=torch.float32)
    before = base.score.weight.clone()
    read = PeftModel.from_pretrained(base, str(folder))
    assert not torch.equal(read.get_base_model().score.weight, before)
    ids = AutoTokenizer.from_pretrained(str(EMBEDDED))("4 is larger than 3.", return_tensors="pt")[
        "input_ids"
    ]
    assert read(input_ids=ids).logits.shape == (1, 2)
