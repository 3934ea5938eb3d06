"""Two checkpoints of one log: the same, one continuing the other, or a fork; and a log that is followed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kala.audit.checkpoint import Checkpoint
from kala.audit.compare import Relation, TileView, compare
from kala.audit.cosignature import CosignatureKind, Cosigner
from kala.audit.merkle import EMPTY_ROOT
from kala.audit.monitor import HistoryError, Policy, look
from kala.audit.note import Signer
from kala.audit.report import TamperedError, UnverifiableError
from tests.fakes.audit_log import ORIGIN, signer
from tests.fakes.mirrors import Mirror

TRUSTED = [signer().verifier]
NOW = 1_790_000_000
WITNESSES = [
    Cosigner.of("one.test", CosignatureKind.ED25519, b"1" * 32),
    Cosigner.of("two.test", CosignatureKind.ML_DSA_44, b"2" * 32),
]


def leaves(count: int, fork_at: int | None = None) -> list[bytes]:
    return [b"fork %d" % n if fork_at is not None and n >= fork_at else b"entry %d" % n for n in range(count)]


def at(mirror: Mirror, size: int) -> Checkpoint:
    return Checkpoint.parse(mirror.note(size).partition("\n\n")[0] + "\n")


def cosigned(mirror: Mirror, *cosigners: Cosigner, age_seconds: int = 0) -> Mirror:
    note = mirror.note(len(mirror.leaves))
    text = note.partition("\n\n")[0] + "\n"
    lines = [cosigner.line(text, NOW - age_seconds) for cosigner in cosigners]
    mirror.files["checkpoint"] = (note + "".join(lines)).encode()
    return mirror


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 700), (256, 700), (300, 700), (512, 513), (699, 700)])
def test_a_grown_log_is_consistent_in_either_order(old: int, new: int) -> None:
    mirror = Mirror(leaves(700))
    view = TileView(mirror)
    for first, second in ((old, new), (new, old)):
        found = compare(at(mirror, first), at(mirror, second), view)
        assert (found.relation, found.older.size, found.newer.size) == (Relation.CONSISTENT, old, new)


@pytest.mark.parametrize("old", [1, 2, 255, 256, 257, 300, 512, 699])
def test_a_fork_is_told_whichever_side_is_asked(old: int) -> None:
    """Also where the old size is a power of two, whose root stands in no proof."""
    ours, fork = Mirror(leaves(700)), Mirror(leaves(700, fork_at=0))
    for asked in (ours, fork):
        found = compare(at(ours, old), at(fork, 700), TileView(asked), TRUSTED)
        assert found.relation is Relation.FORKED


@pytest.mark.parametrize("old", [256, 257, 300])
def test_a_copy_that_lies_about_newer_entries_accuses_no_log(old: int) -> None:
    """Who holds a copy and no key kept the entries up to `old`, changed later ones, and the log was called forked."""
    log, liar = Mirror(leaves(700)), Mirror(leaves(700, fork_at=old))
    liar.files["checkpoint"] = log.files["checkpoint"]
    with pytest.raises(TamperedError, match="the log's copy"):
        compare(at(log, old), at(log, 700), TileView(liar), TRUSTED)
    with pytest.raises(HistoryError, match="nothing that it gives leads") as caught:
        look(TileView(liar), Policy(TRUSTED), log.note(old), now=NOW)
    assert not caught.value.is_proof


@pytest.mark.parametrize("old", [256, 257, 300])
def test_a_copy_that_changes_while_it_is_asked_accuses_no_log(old: int) -> None:
    log, other = Mirror(leaves(700)), Mirror(leaves(700, fork_at=3))

    class Changing(TileView):
        def prove(self, old_size: int, new_size: int) -> Sequence[bytes]:
            return TileView(other).prove(old_size, new_size)

    with pytest.raises(TamperedError, match="the log's copy"):
        compare(at(log, old), at(log, 700), Changing(log), TRUSTED)


def test_equal_sizes_need_no_proof() -> None:
    ours, fork = Mirror(leaves(9)), Mirror(leaves(9, fork_at=8))
    assert compare(at(ours, 9), at(ours, 9)).relation is Relation.SAME
    assert compare(at(ours, 9), at(fork, 9)).relation is Relation.FORKED


def test_an_empty_log_begins_every_log_and_nothing_else_of_size_0_does() -> None:
    newer = at(Mirror(leaves(9)), 9)
    assert compare(Checkpoint(ORIGIN, 0, EMPTY_ROOT), newer).relation is Relation.CONSISTENT
    assert compare(Checkpoint(ORIGIN, 0, b"r" * 32), newer).relation is Relation.FORKED
    assert (
        compare(Checkpoint(ORIGIN, 0, EMPTY_ROOT), Checkpoint(ORIGIN, 0, b"r" * 32)).relation
        is Relation.FORKED
    )


def test_what_cannot_be_compared_is_no_verdict() -> None:
    mirror = Mirror(leaves(700))
    with pytest.raises(UnverifiableError, match="needs a proof"):
        compare(at(mirror, 3), at(mirror, 9))
    with pytest.raises(UnverifiableError, match="two logs"):
        compare(at(mirror, 3), Checkpoint("other.test", 3, b"r" * 32))
    with pytest.raises(UnverifiableError, match="fewer than 700"):
        compare(at(mirror, 3), at(mirror, 700), TileView(Mirror(leaves(600))))
    del mirror.files["tile/0/001"]
    with pytest.raises(UnverifiableError, match="no proof"):
        compare(at(mirror, 300), at(mirror, 700), TileView(mirror))
    mirror.files["checkpoint"] = b"nonsense"
    with pytest.raises(UnverifiableError, match="cannot be read"):
        compare(at(mirror, 300), at(mirror, 700), TileView(mirror))
    with pytest.raises(UnverifiableError, match="no checkpoint"):
        compare(at(mirror, 300), at(mirror, 600), TileView(_without_checkpoint()))


def _without_checkpoint() -> Mirror:
    mirror = Mirror(leaves(3))
    del mirror.files["checkpoint"]
    return mirror


def test_the_tiles_of_a_third_log_are_blamed_themselves() -> None:
    mirror, third = Mirror(leaves(700)), Mirror(leaves(700, fork_at=1))
    with pytest.raises(TamperedError, match="not the log of these checkpoints"):
        compare(at(mirror, 300), at(mirror, 700), TileView(third))


class TestLook:
    """`look`, one round of a monitor."""

    def test_the_first_look_takes_the_log_as_it_is(self) -> None:
        sight = look(TileView(Mirror(leaves(9))), Policy(TRUSTED), None, now=NOW)
        assert (sight.checkpoint.size, sight.relation, sight.cosigned) == (9, Relation.SAME, [])

    def test_a_log_that_grew_or_rests_is_followed(self) -> None:
        before = Mirror(leaves(300)).note(300)
        for size, relation in ((300, Relation.SAME), (301, Relation.CONSISTENT), (700, Relation.CONSISTENT)):
            sight = look(TileView(Mirror(leaves(size))), Policy(TRUSTED), before, now=NOW)
            assert (sight.checkpoint.size, sight.relation) == (size, relation)

    @pytest.mark.parametrize("size", [300, 301, 512, 700])
    def test_a_fork_is_noticed(self, size: int) -> None:
        view = TileView(Mirror(leaves(size, fork_at=5)))
        with pytest.raises(TamperedError, match="forked"):
            look(view, Policy(TRUSTED), Mirror(leaves(300)).note(300), now=NOW)

    def test_a_log_that_shrank_is_noticed(self) -> None:
        with pytest.raises(TamperedError, match="cut, or an old copy") as caught:
            look(TileView(Mirror(leaves(200))), Policy(TRUSTED), Mirror(leaves(300)).note(300), now=NOW)
        assert caught.value.first_bad_index == 200

    def test_enough_witnesses_are_asked_for(self) -> None:
        keys = [cosigner.witness for cosigner in WITNESSES]
        mirror = cosigned(Mirror(leaves(9)), *WITNESSES)
        sight = look(TileView(mirror), Policy(TRUSTED, keys, 2), None, now=NOW)
        assert sight.cosigned == ["one.test", "two.test"]
        one = cosigned(Mirror(leaves(9)), WITNESSES[1])
        with pytest.raises(UnverifiableError, match="1 of 2 required witnesses"):
            look(TileView(one), Policy(TRUSTED, keys, 2), None, now=NOW)

    def test_two_keys_of_one_witness_count_once(self) -> None:
        second = Cosigner.of("one.test", CosignatureKind.ED25519, b"3" * 32)
        mirror = cosigned(Mirror(leaves(9)), WITNESSES[0], second)
        with pytest.raises(UnverifiableError, match="1 of 2"):
            look(TileView(mirror), Policy(TRUSTED, [WITNESSES[0].witness, second.witness], 2), None, now=NOW)

    def test_a_false_cosignature_is_tampering(self) -> None:
        mirror = cosigned(Mirror(leaves(9)), WITNESSES[0])
        other = cosigned(Mirror(leaves(10)), WITNESSES[0]).files["checkpoint"].decode().splitlines()[-1]
        mirror.files["checkpoint"] = mirror.note(9).encode() + f"{other}\n".encode()
        with pytest.raises(TamperedError, match=r"one\.test does not hold"):
            look(TileView(mirror), Policy(TRUSTED, [WITNESSES[0].witness]), None, now=NOW)

    @pytest.mark.parametrize(
        ("cosigners", "required", "accepted"),
        [(WITNESSES[:1], 0, True), (WITNESSES, 2, True), ([], 0, False)],
        ids=["one", "two", "none"],
    )
    def test_age_is_told_by_witnesses_alone(
        self, cosigners: Sequence[Cosigner], required: int, *, accepted: bool
    ) -> None:
        mirror = cosigned(Mirror(leaves(9)), *cosigners, age_seconds=100)
        keys = [cosigner.witness for cosigner in WITNESSES]
        policy = Policy(TRUSTED, keys, required, max_age_seconds=100)
        if accepted:
            assert look(TileView(mirror), policy, None, now=NOW).checkpoint.size == 9
            policy = Policy(TRUSTED, keys, required, max_age_seconds=99)
        with pytest.raises(UnverifiableError, match="may be stale"):
            look(TileView(mirror), policy, None, now=NOW)

    def test_a_page_of_a_proxy_is_no_word_of_the_log(self) -> None:
        """It ended the monitor as tampering, though `verify` called the same page no log."""
        mirror = Mirror(leaves(9))
        mirror.files["checkpoint"] = b"<html>\nback soon\n\n</html>\n"
        with pytest.raises(UnverifiableError, match="no checkpoint of a log whose key was given"):
            look(TileView(mirror), Policy(TRUSTED), None, now=NOW)

    def test_a_checkpoint_that_the_log_did_not_sign_is_refused(self) -> None:
        with pytest.raises(TamperedError, match="the checkpoint: "):
            look(TileView(Mirror(leaves(9), Signer.of(ORIGIN, b"x" * 32))), Policy(TRUSTED), None, now=NOW)
        with pytest.raises(UnverifiableError, match="public key"):
            look(TileView(Mirror(leaves(9))), Policy([]), None, now=NOW)
        with pytest.raises(UnverifiableError, match="pinned checkpoint cannot be used"):
            look(TileView(Mirror(leaves(9))), Policy(TRUSTED), "nonsense", now=NOW)
