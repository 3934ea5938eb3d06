"""Holds an adapter's folder against pinned keys, offline: `python -m services.trainer.verify FOLDER --trainer-key …`.

It asks what inference asks before it loads, and needs no service, no database and no network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from kala.audit.note import Verifier
from kala.common.v1.adapter_pb2 import AdapterDescription, AdapterManifest, SignedRevocationList
from kala.common.v1.gate_pb2 import GateResult
from kala.common.v1.measurement_pb2 import MEASURER_ETHICS, MEASURER_TOOLS
from kala.errors import FailedPreconditionError, KalaError, VerificationError
from services.common.adapter_manifest import (
    MANIFEST_FILE,
    MAX_REVOCATIONS_BYTES,
    AdapterTrust,
    ServingPolicy,
    VerifiedAdapter,
    read_signed_manifest,
    verify_adapter,
    verify_candidate,
    verify_revocations,
)
from services.common.gate_profile import read_profile
from services.common.gates import GateTrust
from services.common.keys import load_public_keys
from services.common.strict_parsing import parse_signed
from services.trainer.registry.shelf import Folder

PACKAGED_PROFILES: Final = Path(__file__).with_name("evaluation") / "profiles"
EXIT_HOLDS: Final = 0
EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2


def main(arguments: Sequence[str]) -> int:
    """Prints the adapter as JSON and gives 0 when it may serve; prints why and gives 1 when it may not."""
    asked = _parser().parse_args(arguments)
    try:
        verified = verify(asked)
    except KalaError as error:
        sys.stderr.write(f"{asked.folder}: {error.message}\n")
        return EXIT_REFUSED
    sys.stdout.write(json.dumps(facts_of(verified), indent=2) + "\n")
    return EXIT_HOLDS


def verify(asked: argparse.Namespace) -> VerifiedAdapter:
    """The adapter in a folder, verified as inference would; with `--candidate` without a gate."""
    folder = Folder(asked.folder)
    trainer = load_public_keys(asked.trainer_key)
    signed = read_signed_manifest(_read(asked.folder / MANIFEST_FILE))
    revoked = frozenset() if asked.revocations is None else _revoked(asked.revocations, trainer)
    # Which base and which laws count is the caller's to say; what is not said is taken from the manifest itself.
    claimed = _claimed(signed.manifest)
    base_digest = asked.base_digest or AdapterDescription.FromString(claimed.adapter).base.digest
    if asked.candidate:
        return verify_candidate(
            signed, folder.names(), folder.read, trusted=trainer, base_digest=base_digest, revoked=revoked
        )
    chosen = asked.profile or sorted(PACKAGED_PROFILES.glob("*.json"))
    profiles = [read_profile(_read(path)) for path in chosen]
    measurers = {
        MEASURER_ETHICS: load_public_keys(asked.ethics_key),
        MEASURER_TOOLS: load_public_keys(asked.tools_key),
    }
    log = [Verifier.parse(line) for path in asked.log_key for line in _read(path).decode().split()]
    policy = ServingPolicy(
        base_digest=base_digest,
        profiles={profile.digest: profile for profile in profiles},
        constitution_digests=frozenset(asked.constitution) or _laws_of(claimed),
        revoked=revoked,
        demo_allowed=asked.allow_demo,
    )
    trust = AdapterTrust(trainer, GateTrust(log, measurers))
    return verify_adapter(signed, folder.names(), folder.read, trust=trust, policy=policy)


def facts_of(verified: VerifiedAdapter) -> dict[str, Any]:  # JSON
    """The chain from the adapter to its data, by digest."""
    description = verified.description
    return {
        "adapter": description.name,
        "adapter_digest": verified.digest.hex(),
        "issuer": verified.manifest.issuer,
        "base": {"name": description.base.name, "digest": description.base.digest.hex()},
        "ancestors": [
            {"adapter": item.name, "digest": item.adapter_digest.hex()} for item in description.ancestors
        ],
        "datasets": [{"dataset": item.name, "digest": item.digest.hex()} for item in description.datasets],
        "training": {
            "job": description.training.job,
            "decision": description.training.decision_id,
            "intent_receipt": description.training.intent_receipt,
            "action_digest": description.training.action_digest.hex(),
        },
        "gates": [
            {
                "profile": gate.result.profile,
                "evaluation": gate.result.evaluation,
                "constitution": gate.result.constitution_digest.hex(),
                "log_index": gate.receipt.index,
            }
            for gate in verified.gates
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.verify", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the adapter's folder, with its kala-adapter.binpb")
    parser.add_argument("--trainer-key", type=Path, action="append", required=True, help="PEM; may repeat")
    parser.add_argument("--ethics-key", type=Path, action="append", default=[], help="PEM; may repeat")
    parser.add_argument("--tools-key", type=Path, action="append", default=[], help="PEM; may repeat")
    parser.add_argument("--log-key", type=Path, action="append", default=[], help="vkey lines; may repeat")
    parser.add_argument(
        "--profile", type=Path, action="append", default=[], help="a gate profile that counts"
    )
    parser.add_argument(
        "--constitution",
        type=_digest,
        action="append",
        default=[],
        help="digest of laws in force, hex; unset: whichever the gates name",
    )
    parser.add_argument("--base-digest", type=_digest, help="the base it is to serve on, hex")
    parser.add_argument("--revocations", type=Path, help="the signed list")
    parser.add_argument("--allow-demo", action="store_true", help="let a demonstration's profile count")
    parser.add_argument("--candidate", action="store_true", help="ask for no gate")
    return parser


def _digest(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != 32:  # noqa: PLR2004 - the length of SHA-256
        raise argparse.ArgumentTypeError("must have 64 hexadecimal digits")
    return digest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from error


def _revoked(path: Path, trusted: Any) -> frozenset[bytes]:  # PublicKeys
    what = f"revocation list {path}"
    signed = parse_signed(what, _read(path), SignedRevocationList, max_bytes=2 * MAX_REVOCATIONS_BYTES)
    return frozenset(item.adapter_digest for item in verify_revocations(signed, trusted).revocations)


def _claimed(manifest: bytes) -> AdapterManifest:
    """What the manifest says of itself, before it is verified: only to know what to hold it against."""
    try:
        return AdapterManifest.FromString(manifest)
    except DecodeError as error:
        raise VerificationError("manifest: is not one") from error


def _laws_of(manifest: AdapterManifest) -> frozenset[bytes]:
    """The laws that its gates name: without a word of which are in force, all of them count, and are shown."""
    return frozenset(GateResult.FromString(gate.result).constitution_digest for gate in manifest.gates)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
