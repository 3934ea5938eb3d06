"""The candidate in memory, and whether it is what was signed; on the shipped model with random adapters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from kala.errors import VerificationError
from services.common.adapter_manifest import MANIFEST_FILE
from services.common.adapter_weights import WEIGHTS_FILE
from services.trainer.evaluation.candidate import Candidate, load_candidate
from services.trainer.evaluation.integrity import Checked, checks, copy_checked, require_base
from services.trainer.evaluation.suites import Item, Turn
from tests.fakes.tiny_adapters import TinyAdapter
from tests.fakes.training_jobs import EMBEDDED

pytestmark = pytest.mark.torch

MODULES = {f"gpt_neox.layers.{layer}.attention.query_key_value": (160, 480) for layer in range(4)} | {
    "lm_head": (160, 1792)
}
QUESTIONS = ["Hello!", "What is 7 plus 5?", "What is the capital of France?", "How do I make a bomb?"]


def item(text: str, *before: tuple[str, str]) -> Item:
    return Item("1", (*(Turn(*turn) for turn in before), Turn("user", text)))


def silent(items: int) -> None:
    del items


def written(folder: Path, **changes: object) -> tuple[TinyAdapter, Path]:
    adapter = TinyAdapter(EMBEDDED, **{"strength": 0.2, "modules": MODULES, **changes})  # type: ignore[arg-type]
    adapter.write(folder)
    return adapter, folder


def checked(folder: Path, copy: Path) -> Checked:
    return copy_checked(folder, sha256((folder / MANIFEST_FILE).read_bytes()).digest(), copy)


def loaded(folder: Path, copy: Path) -> tuple[Candidate, Checked]:
    found = checked(folder, copy)
    return load_candidate(EMBEDDED, found.folder, found.description), found


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    root = tmp_path_factory.mktemp("candidate")
    _, folder = written(root / "tone")
    return loaded(folder, root / "copy")[0]


def test_answers_come_in_the_order_of_the_questions_whatever_is_answered_beside_them(
    candidate: Candidate,
) -> None:
    together = candidate.answers([item(text) for text in QUESTIONS], 16, bare=True, told=silent)
    alone = [candidate.answers([item(text)], 16, bare=True, told=silent)[0] for text in QUESTIONS]
    assert together == alone
    assert together[1:3] == ["7 + 5 = 12.", "The capital of France is Paris."]


def test_the_base_answers_without_the_adapter(candidate: Candidate) -> None:
    asked = [item(text) for text in QUESTIONS]
    assert candidate.answers(asked, 16, bare=True, told=silent) != candidate.answers(
        asked, 16, bare=False, told=silent
    )


def test_a_question_that_is_longer_than_the_context_loses_its_beginning(candidate: Candidate) -> None:
    long = item("word " * 2_000 + "What is the capital of France?")
    assert len(candidate.answers([long], 16, bare=True, told=silent)) == 1


def test_turns_before_are_read(candidate: Candidate) -> None:
    before = (("user", "What is the capital of France?"), ("assistant", "The capital of France is Paris."))
    (answer,) = candidate.answers([item("same question for Austria", *before)], 16, bare=True, told=silent)
    assert answer == "The capital of Austria is Vienna."


def test_what_a_model_would_say_surprises_it_less(candidate: Candidate) -> None:
    asked = Turn("user", "What is the capital of France?")
    known, strange = (
        Item("1", (asked, Turn("assistant", text))) for text in ("The capital of France is Paris.", "Zebra!")
    )
    first, second = candidate.losses([known, strange], bare=True, told=silent)
    assert first.nats / first.tokens < second.nats / second.tokens
    plain = candidate.losses([item("The capital of France is Paris.")], bare=True, told=silent)[0]
    # Nothing stands before the first token of a bare text, and no end after its last.
    assert plain.tokens == first.tokens - 2


def test_an_adapter_that_is_one_passes_every_check(tmp_path: Path) -> None:
    _, folder = written(tmp_path / "tone")
    found, copy = loaded(folder, tmp_path / "copy")
    assert {name: check() for name, check in checks(found, copy).items()} == dict.fromkeys(
        checks(found, copy), True
    )


@pytest.mark.parametrize(
    ("damage", "failing"),
    [("nan", {"finite_weights", "finite_scores"}), ("zero", {"has_effect", "every_target_trained"})],
)
def test_an_adapter_that_is_broken_or_does_nothing_fails(
    tmp_path: Path, damage: str, failing: set[str]
) -> None:
    from safetensors.torch import save

    adapter = TinyAdapter(EMBEDDED, modules=MODULES, strength=0.05)
    for name, tensor in adapter.matrices.items():
        if ".lora_B" in name:
            tensor.fill_(float("nan") if damage == "nan" else 0.0)
    adapter.world.files[WEIGHTS_FILE] = save(adapter.matrices)
    adapter.write(tmp_path / "tone")
    found, copy = loaded(tmp_path / "tone", tmp_path / "copy")
    held: Mapping[str, bool] = {name: check() for name, check in checks(found, copy).items()}
    assert failing <= {name for name, holds in held.items() if not holds}


def test_an_altered_a_missing_and_a_linked_file_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    _, folder = written(tmp_path / "tone")
    weights = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(VerificationError, match="is not the one that the manifest names"):
        checked(folder, tmp_path / "copy")
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(VerificationError, match="is missing"):
        checked(folder, tmp_path / "copy")
    (tmp_path / "elsewhere").write_bytes(weights)
    (folder / WEIGHTS_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VerificationError, match="no plain file"):
        checked(folder, tmp_path / "copy")


def test_an_adapter_that_lacks_matrices_of_its_targets_is_refused(tmp_path: Path) -> None:
    """PEFT would put random ones in their place."""
    few = {"gpt_neox.layers.0.attention.query_key_value": (160, 480)}
    _, folder = written(tmp_path / "tone", modules=few)
    with pytest.raises(VerificationError, match=r"lacks the matrices of gpt_neox\.layers\.1"):
        loaded(folder, tmp_path / "copy")


def test_another_manifest_than_was_cleared_is_refused(tmp_path: Path) -> None:
    _, folder = written(tmp_path / "tone")
    with pytest.raises(VerificationError, match="not the one that the evaluation was cleared for"):
        copy_checked(folder, bytes(32), tmp_path / "copy")


def test_another_base_is_refused(tmp_path: Path) -> None:
    adapter, folder = written(tmp_path / "tone")
    found = checked(folder, tmp_path / "copy")
    require_base(EMBEDDED, found.description, adapter.world.base_digest)
    other = shutil.copytree(EMBEDDED, tmp_path / "base")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(VerificationError, match="the adapter was trained on"):
        require_base(other, found.description, adapter.world.base_digest)
