"""Invariant 2, attacked: a clearance must not be forged, replayed, outlived, re-targeted or stretched to other bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from kala.common.v1.clearance_pb2 import (
    PURPOSE_JUDGE,
    PURPOSE_REQUEST,
    Clearance,
    ClearanceClaims,
    Principal,
    Purpose,
    SealedAction,
)
from kala.errors import ClearanceError
from kala.inference.v1 import inference_pb2
from services.common.clearance import (
    CLOCK_SKEW_SECONDS,
    LIFETIME_SECONDS,
    SIGNATURE_DOMAIN,
    ClearanceSigner,
    ClearanceVerifier,
    current_clearance,
    guard_for,
    guarded_methods,
)
from services.common.nonces import NonceCache
from services.common.sealing import pack

CHAT = "/kala.inference.v1.InferenceService/Chat"
COMPLETE = "/kala.inference.v1.InferenceService/Complete"
CHAT_ACTION = "kala.inference.v1.ChatAction"
ACTION = pack(inference_pb2.ChatAction(model="auto"))
OTHER_ACTION = pack(inference_pb2.ChatAction(model="another"))
START = 1_800_000_000.0


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Peer:
    """A peer with a proven name."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def signer(clock: FakeClock) -> ClearanceSigner:
    return ClearanceSigner(Ed25519PrivateKey.generate(), clock=clock)


@pytest.fixture
def verifier(signer: ClearanceSigner, clock: FakeClock) -> ClearanceVerifier:
    return ClearanceVerifier({signer.key_id: signer.public_key}, clock=clock)


def seal(
    signer: ClearanceSigner,
    *,
    audience: str = CHAT,
    presenter: str = "local:gateway",
    purpose: Purpose.ValueType = PURPOSE_REQUEST,
) -> SealedAction:
    clearance = signer.mint(
        decision_id="d" * 32,
        audience=audience,
        action=ACTION,
        constitution_digest=b"c" * 32,
        presenter=presenter,
        principal=Principal(id="key-1", tenant="default"),
        purpose=purpose,
    )
    return SealedAction(action=ACTION, clearance=clearance)


def present(verifier: ClearanceVerifier, sealed: SealedAction, **changed: str) -> None:
    arguments = {"audience": CHAT, "presenter": "local:gateway", "expected_type": CHAT_ACTION} | changed
    verifier.verify(sealed, **arguments)


def refused(reason: str, act: Callable[[], object]) -> None:
    with pytest.raises(ClearanceError) as caught:
        act()
    assert caught.value.reason == reason


def test_a_good_clearance_lets_its_action_through_and_names_the_principal(
    signer: ClearanceSigner, verifier: ClearanceVerifier
) -> None:
    verified = verifier.verify(
        seal(signer), audience=CHAT, presenter="local:gateway", expected_type=CHAT_ACTION
    )
    assert verified.claims.principal.id == "key-1"
    assert verified.action == ACTION


def test_no_clearance_is_refused(verifier: ClearanceVerifier) -> None:
    refused("CLEARANCE_MISSING", lambda: present(verifier, SealedAction(action=ACTION)))


def test_a_stranger_cannot_sign(verifier: ClearanceVerifier, clock: FakeClock) -> None:
    stranger = ClearanceSigner(Ed25519PrivateKey.generate(), clock=clock)
    refused("CLEARANCE_UNKNOWN_KEY", lambda: present(verifier, seal(stranger)))


def test_a_stranger_cannot_borrow_the_key_id(
    signer: ClearanceSigner, verifier: ClearanceVerifier, clock: FakeClock
) -> None:
    forged = seal(ClearanceSigner(Ed25519PrivateKey.generate(), clock=clock))
    forged.clearance.key_id = signer.key_id
    refused("CLEARANCE_FORGED", lambda: present(verifier, forged))


def test_a_signature_made_for_something_else_does_not_count(verifier: ClearanceVerifier) -> None:
    key = Ed25519PrivateKey.generate()
    signer = ClearanceSigner(key, clock=FakeClock())
    own = ClearanceVerifier({signer.key_id: signer.public_key}, clock=FakeClock())
    sealed = seal(signer)
    sealed.clearance.signature = key.sign(sealed.clearance.claims)  # without the domain
    refused("CLEARANCE_FORGED", lambda: present(own, sealed))


@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7), in_claims=st.booleans())
def test_any_changed_bit_of_claims_or_signature_is_refused(
    position: int, bit: int, *, in_claims: bool
) -> None:
    clock = FakeClock()
    signer = ClearanceSigner(Ed25519PrivateKey.from_private_bytes(b"k" * 32), clock=clock)
    verifier = ClearanceVerifier({signer.key_id: signer.public_key}, clock=clock)
    sealed = seal(signer)
    target = bytearray(sealed.clearance.claims if in_claims else sealed.clearance.signature)
    target[position % len(target)] ^= 1 << bit
    if in_claims:
        sealed.clearance.claims = bytes(target)
    else:
        sealed.clearance.signature = bytes(target)
    refused("CLEARANCE_FORGED", lambda: present(verifier, sealed))


def test_a_clearance_is_used_once(signer: ClearanceSigner, verifier: ClearanceVerifier) -> None:
    sealed = seal(signer)
    present(verifier, sealed)
    refused("CLEARANCE_REPLAYED", lambda: present(verifier, sealed))


def test_a_replay_is_refused_to_the_end_of_its_life(
    signer: ClearanceSigner, verifier: ClearanceVerifier, clock: FakeClock
) -> None:
    sealed = seal(signer)
    present(verifier, sealed)
    clock.now += LIFETIME_SECONDS + CLOCK_SKEW_SECONDS
    refused("CLEARANCE_REPLAYED", lambda: present(verifier, sealed))
    clock.now += 1
    refused("CLEARANCE_EXPIRED", lambda: present(verifier, sealed))


def test_a_failed_presentation_does_not_spend_the_clearance(
    signer: ClearanceSigner, verifier: ClearanceVerifier
) -> None:
    sealed = seal(signer)
    refused("CLEARANCE_WRONG_PRESENTER", lambda: present(verifier, sealed, presenter="local:tools"))
    present(verifier, sealed)


def test_it_expires(signer: ClearanceSigner, verifier: ClearanceVerifier, clock: FakeClock) -> None:
    sealed = seal(signer)
    clock.now += LIFETIME_SECONDS + CLOCK_SKEW_SECONDS + 1
    refused("CLEARANCE_EXPIRED", lambda: present(verifier, sealed))


def test_it_can_expire_between_arrival_and_act(
    signer: ClearanceSigner, verifier: ClearanceVerifier, clock: FakeClock
) -> None:
    verified = verifier.verify(
        seal(signer), audience=CHAT, presenter="local:gateway", expected_type=CHAT_ACTION
    )
    verifier.recheck(verified)
    clock.now += LIFETIME_SECONDS + CLOCK_SKEW_SECONDS + 1
    refused("CLEARANCE_EXPIRED", lambda: verifier.recheck(verified))


def test_one_from_the_future_is_refused(
    signer: ClearanceSigner, verifier: ClearanceVerifier, clock: FakeClock
) -> None:
    sealed = seal(signer)
    clock.now -= CLOCK_SKEW_SECONDS + 1
    refused("CLEARANCE_NOT_YET_VALID", lambda: present(verifier, sealed))


def test_one_from_before_this_replica_started_is_refused(signer: ClearanceSigner, clock: FakeClock) -> None:
    sealed = seal(signer)
    clock.now += 1
    restarted = ClearanceVerifier({signer.key_id: signer.public_key}, clock=clock)
    refused("CLEARANCE_BEFORE_START", lambda: present(restarted, sealed))


def test_ethics_cannot_be_made_to_sign_a_long_life(verifier: ClearanceVerifier) -> None:
    key = Ed25519PrivateKey.generate()
    signer = ClearanceSigner(key, clock=FakeClock())
    own = ClearanceVerifier({signer.key_id: signer.public_key}, clock=FakeClock())
    claims = ClearanceClaims.FromString(seal(signer).clearance.claims)
    claims.expires_at.seconds += 1
    raw = claims.SerializeToString()
    clearance = Clearance(claims=raw, signature=key.sign(SIGNATURE_DOMAIN + raw), key_id=signer.key_id)
    refused("CLEARANCE_FORGED", lambda: present(own, SealedAction(action=ACTION, clearance=clearance)))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"audience": COMPLETE}, "CLEARANCE_WRONG_AUDIENCE"),
        ({"presenter": "local:tools"}, "CLEARANCE_WRONG_PRESENTER"),
        ({"expected_type": "kala.inference.v1.CompleteAction"}, "CLEARANCE_WRONG_TYPE"),
    ],
    ids=["another RPC", "another presenter", "another type"],
)
def test_it_cannot_be_retargeted(
    signer: ClearanceSigner, verifier: ClearanceVerifier, changed: dict[str, str], reason: str
) -> None:
    refused(reason, lambda: present(verifier, seal(signer), **changed))


def test_it_does_not_cover_other_bytes(signer: ClearanceSigner, verifier: ClearanceVerifier) -> None:
    sealed = seal(signer)
    sealed.action.CopyFrom(OTHER_ACTION)
    refused("CLEARANCE_ALTERED", lambda: present(verifier, sealed))


def test_the_same_message_in_other_bytes_is_not_the_same_action(
    signer: ClearanceSigner, verifier: ClearanceVerifier
) -> None:
    sealed = seal(signer)
    sealed.action.value += sealed.action.value  # parses to an equal message: last one wins
    refused("CLEARANCE_ALTERED", lambda: present(verifier, sealed))


def test_claims_of_a_newer_ethics_are_refused() -> None:
    key = Ed25519PrivateKey.generate()
    signer = ClearanceSigner(key, clock=FakeClock())
    verifier = ClearanceVerifier({signer.key_id: signer.public_key}, clock=FakeClock())
    raw = seal(signer).clearance.claims + b"\xfa\x07\x01x"  # field 127, unknown to this version
    clearance = Clearance(claims=raw, signature=key.sign(SIGNATURE_DOMAIN + raw), key_id=signer.key_id)
    refused(
        "CLEARANCE_UNKNOWN_FIELDS",
        lambda: present(verifier, SealedAction(action=ACTION, clearance=clearance)),
    )


def test_a_full_nonce_cache_refuses_and_recovers(signer: ClearanceSigner, clock: FakeClock) -> None:
    verifier = ClearanceVerifier(
        {signer.key_id: signer.public_key}, nonces=NonceCache(capacity=2), clock=clock
    )
    present(verifier, seal(signer))
    present(verifier, seal(signer))
    refused("CLEARANCE_CACHE_FULL", lambda: present(verifier, seal(signer)))
    clock.now += LIFETIME_SECONDS + CLOCK_SKEW_SECONDS + 1
    present(verifier, seal(signer))


def test_a_clock_that_steps_forth_and_back_replays_nothing(
    signer: ClearanceSigner, verifier: ClearanceVerifier, clock: FakeClock
) -> None:
    used = seal(signer)
    present(verifier, used)
    clock.now += 3600
    present(verifier, seal(signer))
    clock.now -= 3590
    refused("CLEARANCE_REPLAYED", lambda: present(verifier, used))
    present(verifier, seal(signer))


def test_claims_with_a_purpose_of_a_newer_ethics_are_refused(
    signer: ClearanceSigner, verifier: ClearanceVerifier
) -> None:
    sealed = seal(signer, purpose=99)  # type: ignore[arg-type]  # the point: a value that no contract has
    refused("CLEARANCE_UNKNOWN_FIELDS", lambda: present(verifier, sealed))


async def test_the_guard_covers_exactly_the_guarded_calls(
    signer: ClearanceSigner, verifier: ClearanceVerifier
) -> None:
    guard_of = guard_for(verifier, [inference_pb2.DESCRIPTOR])
    assert guard_of("/kala.inference.v1.InferenceService/ListModels") is None
    guard = guard_of(CHAT)
    assert guard is not None
    await guard(inference_pb2.ChatRequest(sealed=seal(signer)), Peer("local:gateway"), None)
    assert current_clearance().claims.audience == CHAT


def test_design_section_4_lists_inference_guards() -> None:
    names = {method.rsplit("/", 1)[1] for method in guarded_methods([inference_pb2.DESCRIPTOR])}
    assert names == {"Chat", "Complete", "Embed", "Rerank", "LoadModel", "LoadAdapter"}


@pytest.mark.parametrize("presenter", ["ethics", "local:ethics"])
def test_ethics_may_have_a_clearance_to_judge_and_no_other(
    signer: ClearanceSigner, verifier: ClearanceVerifier, presenter: str
) -> None:
    present(verifier, seal(signer, presenter=presenter, purpose=PURPOSE_JUDGE), presenter=presenter)
    asking = seal(signer, presenter=presenter)
    refused("CLEARANCE_WRONG_PURPOSE", lambda: present(verifier, asking, presenter=presenter))


@pytest.mark.parametrize("presenter", ["local:gateway", "gateway", "local:trainer", "ethics.evil"])
def test_nobody_else_gets_what_a_guard_says(
    signer: ClearanceSigner, verifier: ClearanceVerifier, presenter: str
) -> None:
    judging = seal(signer, presenter=presenter, purpose=PURPOSE_JUDGE)
    refused("CLEARANCE_WRONG_PURPOSE", lambda: present(verifier, judging, presenter=presenter))


def test_judging_is_a_chat_and_nothing_else(signer: ClearanceSigner, verifier: ClearanceVerifier) -> None:
    judging = seal(signer, audience=COMPLETE, presenter="local:ethics", purpose=PURPOSE_JUDGE)
    refused(
        "CLEARANCE_WRONG_PURPOSE",
        lambda: present(verifier, judging, presenter="local:ethics", audience=COMPLETE),
    )
