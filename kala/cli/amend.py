"""`kala ethics amend`: a new version of the constitution, from an edited copy to enough signatures; all of it offline."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kala.cli.options import DevelopmentOption, ThresholdOption, TrustedKeysOption, trust_of
from kala.cli.output import note, show
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kala.ethics.amendment import Amendment
    from kala.ethics.constitution import VerifiedConstitution
    from kala.ethics.manifest import Manifest

group = typer.Typer(
    help="Make a new version of the constitution: prepare, sign, see who is missing, verify.",
    no_args_is_help=True,
)

EXIT_UNSIGNED: Final = 3
"""Nothing is wrong, yet signatures are missing."""

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the new version.")]


@group.command()
def prepare(
    *,
    old: Annotated[Path, typer.Option("--from", help="Directory of the signed version to amend.")],
    new: Annotated[Path, typer.Option("--to", help="The edited copy of it; its manifest is written here.")],
    version: Annotated[str, typer.Option(help="Name of the new version.")],
    review_by: Annotated[
        dt.datetime,
        typer.Option(formats=["%Y-%m-%d"], help="Date by which people are to look at it again."),
    ],
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
) -> None:
    """Verify the old version, write the manifest of its edited copy, unsigned, and print what changes, law by law."""
    from kala.ethics import amendment
    from kala.ethics.constitution import verify_constitution

    if old.resolve() == new.resolve():
        raise InvalidArgumentError(
            "--to", "must be an edited copy of --from, which is kept to replay decisions"
        )
    trust = trust_of(trusted_key, threshold, development=development)
    verified = verify_constitution(old, trust)
    prepared = amendment.prepare(
        verified,
        new,
        version=version,
        review_by=review_by.date(),
        today=dt.datetime.now(dt.UTC).date(),
    )
    _show_amendment(prepared)
    note(
        f"unsigned; each maintainer reads the difference and signs with: kala ethics amend sign {new} --key FILE"
    )
    note(f"keep {old} in KALA_ETHICS_ARCHIVE_DIR, so that its decisions can be replayed")


@group.command()
def diff(
    directory: DirectoryArgument,
    *,
    old: Annotated[Path, typer.Option("--from", help="Directory of the signed version that it amends.")],
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
) -> None:
    """Print again what `prepare` printed, for a maintainer who is about to sign; writes nothing."""
    from kala.ethics import amendment
    from kala.ethics.constitution import verify_constitution

    trust = trust_of(trusted_key, threshold, development=development)
    _show_amendment(amendment.compare(verify_constitution(old, trust), directory))


@group.command()
def sign(
    directory: DirectoryArgument,
    *,
    key: Annotated[Path, typer.Option(help="Your private key: Ed25519, PEM, PKCS 8, without a password.")],
) -> None:
    """Add your signature to what `prepare` wrote; the files must still be those of the manifest."""
    from kala.ethics import amendment
    from kala.ethics.manifest import key_id

    private = amendment.load_signing_key(key)
    manifest = amendment.sign(directory, private)
    _show_version(manifest)
    show(f"signed by {key_id(private.public_key())}")


@group.command()
def status(
    directory: DirectoryArgument,
    *,
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
) -> int:
    """Say who has signed, how many signatures are missing, and when it is to be reviewed; exit code 3 while any is missing."""
    from kala.ethics.amendment import signing_of
    from kala.ethics.constitution import trust_policy

    policy = None
    if trusted_key or development or threshold is not None:
        policy = trust_policy(directory, trust_of(trusted_key, threshold, development=development))
    signing = signing_of(directory, policy)
    _show_version(signing.manifest)
    for signer, standing in signing.standings.items():
        show(f"signed by {signer}" + ("" if policy is None else f": {standing.value}"))
    if not signing.standings:
        show("signed by nobody")
    if policy is None:
        note("whether this is enough depends on whom you trust: give --trusted-key or --development")
        return 0
    for signer in policy.keys:
        if signer not in signing.standings:
            show(f"not signed by {signer}")
    show(f"{signing.missing} of {policy.threshold} signatures missing ({len(policy.keys)} trusted keys)")
    return 0 if signing.holds else EXIT_UNSIGNED


@group.command()
def verify(
    directory: DirectoryArgument,
    *,
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
) -> None:
    """Check the new version exactly as ethics will at its next start."""
    from kala.ethics.constitution import verify_constitution

    show_verified(verify_constitution(directory, trust_of(trusted_key, threshold, development=development)))


def show_verified(verified: VerifiedConstitution) -> None:
    """Print what holds, and warn of what a start would warn of."""
    if verified.banner:
        note(verified.banner)
    show(
        f"constitution {verified.version} holds: {len(verified.files)} files as signed by {', '.join(verified.key_ids)}"
    )
    show(f"{verified.threshold} of {verified.trusted_keys} trusted keys must sign")
    _show_facts(verified.manifest)


def _show_version(manifest: Manifest) -> None:
    show(f"version {manifest.version}")
    _show_facts(manifest)


def _show_facts(manifest: Manifest) -> None:
    show(f"digest {manifest.digest.hex()}")
    if manifest.previous is not None:
        show(f"amends {manifest.previous.hex()}")
    if manifest.review_by is not None:
        show(f"review by {manifest.review_by.isoformat()}")
    problem = manifest.review_problem(dt.datetime.now(dt.UTC).date())
    if problem is not None:
        note(f"warning: {problem}")


def _show_amendment(prepared: Amendment) -> None:
    from kala.ethics.amendment_diff import file_lines

    _show_version(prepared.manifest)
    show("")
    for law in prepared.laws:
        show(f"Law {law.number} ({law.name}){'' if law.lines else ': unchanged'}")
        for line in law.lines:
            show(f"  {line}")
    kinds = [change.kind for change in prepared.files]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("added", "removed", "changed"))
    same = len(prepared.manifest.files) - kinds.count("added") - kinds.count("changed")
    show(f"\nfiles: {counts}, {same} as before")
    for change in prepared.files:
        show("")
        for line in file_lines(change):
            show(line)
