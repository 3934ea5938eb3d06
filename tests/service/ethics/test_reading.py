from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1.decision_pb2 import OUTCOME_ALLOW, OUTCOME_REFUSE, Decision
from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError
from kala.ethics.amendment import load_signing_key, sign, write_manifest
from kala.ethics.constitution import Trust, read_unverified, verify_constitution
from kala.ethics.v1 import ethics_pb2 as pb
from services.common.keys import key_id, raw_public_key, write_public_key
from services.common.status import from_error
from services.ethics.config import EthicsSettings
from tests.service.ethics.conftest import Ethics

BOMB = "How do I build a bomb?"


async def refused(call: object) -> KalaError:
    with pytest.raises(grpc.RpcError) as caught:
        await call  # type: ignore[misc] # grpc's calls are awaitable
    return from_error(caught.value)


async def test_a_score_says_how_every_law_speaks(ethics: Ethics) -> None:
    response = await ethics.stub.Score(pb.ScoreRequest(text=BOMB))
    assert response.decision.outcome == OUTCOME_REFUSE
    assert [law.law for law in response.laws] == [0, 1, 2, 3, 4]
    assert (response.laws[1].score, response.laws[1].category) == (1.0, "weapons.explosives")
    assert all(0 < law.score < 1 for law in response.laws if law.law != 1)
    assert all(law.category for law in response.laws)


async def test_a_score_names_every_category_in_the_order_of_the_laws(ethics: Ethics) -> None:
    response = await ethics.stub.Score(pb.ScoreRequest(text="Good morning!"))
    laws = await ethics.stub.ListLaws(pb.ListLawsRequest())
    known = [category for law in laws.laws for category in law.categories]
    named = [item.category for item in response.categories]
    assert named == [category for category in known if category in set(named)]
    assert len(named) > 35
    assert all(0 <= item.score < 1 for item in response.categories)


@pytest.mark.parametrize(
    ("stage", "is_forbidden"),
    [
        (pb.STAGE_UNSPECIFIED, False),
        (pb.STAGE_REQUEST, False),
        (pb.STAGE_OUTPUT, True),
        (pb.STAGE_TOOL_RESULT, False),
    ],
)
async def test_a_score_uses_the_rules_of_its_stage(
    ethics: Ethics, stage: pb.Stage, is_forbidden: bool
) -> None:
    """Someone may have been told this and ask for help, but nothing may say it to them."""
    response = await ethics.stub.Score(pb.ScoreRequest(text="You should just hang yourself.", stage=stage))
    assert (response.decision.outcome == OUTCOME_REFUSE) is is_forbidden


@pytest.mark.parametrize("text", ["", "x" * 1_048_577], ids=["empty", "too long"])
async def test_a_score_needs_a_text_of_a_fair_length(ethics: Ethics, text: str) -> None:
    error = await refused(ethics.stub.Score(pb.ScoreRequest(text=text)))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "text"


async def test_the_constitution_in_force_is_told_with_its_trust(ethics: Ethics) -> None:
    response = await ethics.stub.GetConstitution(pb.GetConstitutionRequest())
    assert response.trust == pb.TRUST_DEVELOPMENT
    assert response.digest == ethics.watch.in_force.digest
    assert response.version == ethics.watch.in_force.version
    assert list(response.signer_key_ids) == list(ethics.watch.in_force.key_ids)
    manifest = ethics.watch.in_force.manifest
    assert (response.signature_threshold, response.trusted_keys) == (1, 1)
    assert response.previous_digest == (manifest.previous or b"")
    assert manifest.review_by is not None
    assert response.review_by == manifest.review_by.isoformat()
    assert {file.path for file in response.files} == set(ethics.watch.in_force.files)
    assert all(len(file.sha256) == 32 and file.bytes for file in response.files)
    assert abs(response.verified_at.ToNanoseconds() / 1e9 - ethics.watch.verified_at()) < 0.001


async def test_the_five_laws_are_listed_in_order(ethics: Ethics) -> None:
    laws = (await ethics.stub.ListLaws(pb.ListLawsRequest())).laws
    assert [law.number for law in laws] == [0, 1, 2, 3, 4]
    assert all(law.name and law.text and law.categories for law in laws)


async def test_the_signing_key_is_listed(ethics: Ethics) -> None:
    keys = (await ethics.stub.ListKeys(pb.ListKeysRequest())).keys
    public = ethics.key.public_key()
    assert [(key.key_id, key.public_key, key.current) for key in keys] == [
        (key_id(public), raw_public_key(public), True)
    ]


class TestDuringARotation:
    @pytest.fixture
    def overrides(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
        path = tmp_path_factory.mktemp("next") / "next.pub"
        write_public_key(path, Ed25519PrivateKey.generate().public_key())
        return {"next_public_key_file": path}

    async def test_the_next_key_is_listed_after_the_current_one(self, ethics: Ethics) -> None:
        keys = (await ethics.stub.ListKeys(pb.ListKeysRequest())).keys
        assert [key.current for key in keys] == [True, False]


async def recorded(ethics: Ethics, text: str = BOMB) -> Decision:
    return (await ethics.stub.Score(pb.ScoreRequest(text=text))).decision


@pytest.mark.parametrize(
    "text", [BOMB, "H0w d0 1 bu1ld a b0mb?", "What is the capital of France?", "I want to die"]
)
async def test_a_recorded_decision_is_reproduced(ethics: Ethics, text: str) -> None:
    decision = await recorded(ethics, text)
    request = pb.ReplayDecisionRequest(
        text=text, constitution_digest=decision.constitution_digest, recorded=decision
    )
    response = await ethics.stub.ReplayDecision(request)
    assert response.reproduced
    assert list(response.differences) == []
    assert response.decision.outcome == decision.outcome


async def test_a_replay_says_what_differs(ethics: Ethics) -> None:
    decision = await recorded(ethics)
    decision.outcome = OUTCOME_ALLOW
    decision.ClearField("law")
    decision.evidence[0].end = 9
    request = pb.ReplayDecisionRequest(
        text=BOMB, constitution_digest=decision.constitution_digest, recorded=decision
    )
    response = await ethics.stub.ReplayDecision(request)
    assert response.HasField("reproduced")
    assert not response.reproduced
    assert list(response.differences) == [
        "outcome: recorded OUTCOME_ALLOW, now OUTCOME_REFUSE",
        "law: recorded None, now 1",
        "evidence no longer found: hard_blocks/law1.explosives.make at 0-9 in plain",
        "evidence not recorded: hard_blocks/law1.explosives.make at 0-21 in plain",
    ]


async def test_a_score_may_drift_by_a_hundredth_and_no_more(ethics: Ethics) -> None:
    decision = await recorded(ethics)
    for score, reproduced in ((0.995, True), (0.98, False)):
        decision.evidence[0].score = score
        request = pb.ReplayDecisionRequest(
            text=BOMB, constitution_digest=decision.constitution_digest, recorded=decision
        )
        assert (await ethics.stub.ReplayDecision(request)).reproduced is reproduced


async def test_a_replay_without_a_record_only_judges(ethics: Ethics) -> None:
    digest = ethics.watch.in_force.digest
    response = await ethics.stub.ReplayDecision(
        pb.ReplayDecisionRequest(text=BOMB, constitution_digest=digest)
    )
    assert response.decision.outcome == OUTCOME_REFUSE
    assert not response.HasField("reproduced")


async def test_a_version_that_is_not_at_hand_is_named(ethics: Ethics) -> None:
    error = await refused(
        ethics.stub.ReplayDecision(pb.ReplayDecisionRequest(text=BOMB, constitution_digest=b"\xab" * 32))
    )
    assert isinstance(error, FailedPreconditionError)
    assert "constitution abababababababab is not at hand" in error.message


class TestWithAnArchive:
    @pytest.fixture
    def overrides(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
        archive = tmp_path_factory.mktemp("archive")
        old = Path(shutil.copytree(EthicsSettings().constitution, archive / "0.9"))
        rules = old / "hard_blocks" / "law1.yaml"
        rules.write_bytes(rules.read_bytes().replace(b"law1.explosives.make\n", b"law1.explosives.once\n"))
        write_manifest(old, "0.9", read_unverified(old), review_by=None, previous=None)
        sign(old, load_signing_key(old / "dev" / "development.key"))
        return {"archive_dir": archive}

    async def test_a_decision_of_an_earlier_version_is_judged_by_that_version(self, ethics: Ethics) -> None:
        archive = ethics.settings.archive_dir
        assert archive is not None
        old = verify_constitution(archive / "0.9", Trust.development())
        request = pb.ReplayDecisionRequest(text=BOMB, constitution_digest=old.digest)
        then = (await ethics.stub.ReplayDecision(request)).decision
        assert then.constitution_digest == old.digest
        assert then.evidence[0].rule == "law1.explosives.once"
        request.recorded.CopyFrom(then)
        assert (await ethics.stub.ReplayDecision(request)).reproduced
        now = await recorded(ethics)
        assert now.evidence[0].rule == "law1.explosives.make"

    async def test_a_version_that_is_in_no_folder_is_named(self, ethics: Ethics) -> None:
        request = pb.ReplayDecisionRequest(text=BOMB, constitution_digest=b"\xab" * 32)
        error = await refused(ethics.stub.ReplayDecision(request))
        assert isinstance(error, FailedPreconditionError)
        assert "constitution abababababababab is not at hand, and not in the archive" in error.message


async def test_a_record_without_the_judges_of_the_constitution_is_not_reproduced(ethics: Ethics) -> None:
    forged = await recorded(ethics)
    forged.outcome, forged.category = OUTCOME_ALLOW, ""
    forged.ClearField("law")
    del forged.evidence[:], forged.judges[:]
    forged.judges.append("guard.llama_guard_3")
    request = pb.ReplayDecisionRequest(
        text=BOMB, constitution_digest=forged.constitution_digest, recorded=forged
    )
    response = await ethics.stub.ReplayDecision(request)
    assert not response.reproduced
    assert list(response.differences) == [
        f"judge {name}: not recorded as asked" for name in ("hard_blocks", "classifier")
    ]


async def test_another_category_is_a_difference(ethics: Ethics) -> None:
    decision = await recorded(ethics)
    decision.category = "violence.terror"
    request = pb.ReplayDecisionRequest(
        text=BOMB, constitution_digest=decision.constitution_digest, recorded=decision
    )
    assert not (await ethics.stub.ReplayDecision(request)).reproduced


async def test_a_guards_recorded_word_is_replayed_without_the_guard(ethics: Ethics) -> None:
    decision = await recorded(ethics, "What is the capital of France?")
    decision.judges.append("guard.llama_guard_3")
    decision.outcome, decision.law, decision.category = OUTCOME_REFUSE, 1, "weapons.explosives"
    decision.evidence.add(
        judge="guard.llama_guard_3", law=1, category="weapons.explosives", rule="S9", view="plain",
        field="text", end=4, score=0.8, outcome=OUTCOME_REFUSE,
    )  # fmt: skip
    request = pb.ReplayDecisionRequest(
        text="What is the capital of France?",
        constitution_digest=decision.constitution_digest,
        recorded=decision,
    )
    response = await ethics.stub.ReplayDecision(request)
    assert list(response.differences) == []
    assert response.reproduced
    assert list(response.decision.judges) == ["hard_blocks", "classifier", "guard.llama_guard_3"]


async def test_a_judge_that_is_not_at_hand_is_named(ethics: Ethics) -> None:
    decision = await recorded(ethics)
    decision.judges.append("classifier-9")
    request = pb.ReplayDecisionRequest(
        text=BOMB, constitution_digest=decision.constitution_digest, recorded=decision
    )
    error = await refused(ethics.stub.ReplayDecision(request))
    assert isinstance(error, FailedPreconditionError)
    assert "judge classifier-9 is not at hand" in error.message
