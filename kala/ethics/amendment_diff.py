"""What an amendment changes, in words that a maintainer can read before signing: law by law, then file by file. Pure.

Characters that a terminal would obey or hide (controls, direction marks, invisible letters) are spelled out, so that
what is read is what is signed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from kala.errors import ConstitutionError
from kala.ethics.manifest import FileDigest

LAWS_NAME: Final = "laws.yaml"
BLOCKS_PREFIX: Final = "hard_blocks/"
# Longer texts (a tokenizer's vocabulary) are told by size and digest, as binaries are: nobody reads them line by line.
MAX_TEXT_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file that an amendment adds, removes or changes; the side that is missing is None."""

    path: str
    before: bytes | None
    after: bytes | None

    @property
    def kind(self) -> str:
        """`added`, `removed` or `changed`."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


@dataclass(frozen=True, slots=True)
class LawChange:
    """What becomes of one law and its hard blocks; no lines means that nothing of it changes."""

    number: int
    name: str
    lines: tuple[str, ...]


def file_changes(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[FileChange]:
    """Every file that is not the same on both sides, by path."""
    return [
        FileChange(path, before.get(path), after.get(path))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


def file_lines(change: FileChange) -> list[str]:
    """A heading and the change itself: a unified diff of a text, size and digest of anything else."""
    heading = f"{change.kind} {visible(change.path)}"
    texts = [_text(content) for content in (change.before, change.after)]
    if None in texts:
        sides = [
            f"  {sign} {_facts(content)}"
            for sign, content in (("-", change.before), ("+", change.after))
            if content is not None
        ]
        return [heading, *sides]
    # Only line feeds end a line here: any other end of line is a character that is spelled out.
    before, after = ((text or "").split("\n") for text in texts)
    lines = difflib.unified_diff(before, after, lineterm="", n=2)
    # The first two lines name the sides; the heading has said it.
    return [heading, *(f"  {visible(line)}" for line in list(lines)[2:])]


def law_changes(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[LawChange]:
    """What becomes of each law, in order; ConstitutionError names a file that cannot be read as laws or hard blocks."""
    laws = [_laws(files) for files in (before, after)]
    blocks = [_blocks(files) for files in (before, after)]
    changes = []
    for number in sorted({*laws[0], *laws[1], *blocks[0], *blocks[1]}):
        old, new = (side.get(number, {}) for side in laws)
        lines = [*_law_lines(old, new), *_block_lines(*(side.get(number, {}) for side in blocks))]
        changes.append(LawChange(number, visible(str((new or old).get("name", ""))), tuple(lines)))
    return changes


def visible(text: str) -> str:
    """The text with everything spelled out that does not print as itself."""
    return "".join(
        character
        if character.isprintable() or character == "\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def _text(content: bytes | None) -> str | None:
    """The content as a text to be shown; None when it is none, or too long."""
    if content is None:
        return ""
    if len(content) > MAX_TEXT_BYTES or b"\0" in content:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _facts(content: bytes) -> str:
    digest = FileDigest.of(content)
    return f"{digest.size_bytes:,} bytes, SHA-256 {digest.sha256.hex()}"


_Law = Mapping[str, Any]  # Any: a YAML mapping, compared and shown as it is
_Blocks = Mapping[str, Any]  # Any: the same


def _laws(files: Mapping[str, bytes]) -> dict[int, _Law]:
    document = _document(files, LAWS_NAME)
    try:
        return {int(law["number"]): dict(law) for law in document["laws"]} if document else {}
    except (KeyError, TypeError, ValueError) as error:
        raise ConstitutionError(f"{LAWS_NAME}: not a list of laws: {error}") from error


def _blocks(files: Mapping[str, bytes]) -> Mapping[int, _Blocks]:
    """By law: every block by its id, and under the empty id what holds for all of them."""
    found: dict[int, dict[str, Any]] = {}  # Any: YAML values, only compared
    for path in sorted(name for name in files if name.startswith(BLOCKS_PREFIX)):
        document = _document(files, path)
        try:
            of_law = found.setdefault(int(document["law"]), {})
            of_law.update({str(block["id"]): block for block in document["blocks"]})
            shared = {key: value for key, value in document.items() if key not in {"law", "blocks"}}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConstitutionError(f"{path}: not a list of hard blocks: {error}") from error
        of_law[""] = {**of_law.get("", {}), path: shared}
    return found


def _document(files: Mapping[str, bytes], path: str) -> Any:  # Any: YAML may hold anything
    try:
        return yaml.safe_load(files.get(path, b""))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConstitutionError(f"{path}: not YAML: {error}") from error


def _law_lines(old: _Law, new: _Law) -> Iterator[str]:
    for key in sorted({*old, *new}, key=str):
        if old.get(key) == new.get(key):
            continue
        if isinstance(old.get(key), list) and isinstance(new.get(key), list):
            yield from _list_lines(str(key), old[key], new[key])
            continue
        for sign, side in (("-", old), ("+", new)):
            if key in side:
                yield f"{sign} {key}: {visible(' '.join(str(side[key]).split()))}"


def _list_lines(key: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[str]:  # Any: YAML values
    gone, come = ([item for item in one if item not in other] for one, other in ((old, new), (new, old)))
    for sign, items in (("-", gone), ("+", come)):
        if items:
            yield f"{sign} {key}: {visible(', '.join(map(str, items)))}"
    if not gone and not come:
        yield f"~ {key}: in another order"


def _block_lines(old: _Blocks, new: _Blocks) -> Iterator[str]:
    ids = sorted({*old, *new} - {""})
    groups = (
        ("+ hard blocks added", [name for name in ids if name not in old]),
        ("- hard blocks removed", [name for name in ids if name not in new]),
        ("~ hard blocks changed", [name for name in ids if name in old and name in new and old[name] != new[name]]),
    )  # fmt: skip
    for words, names in groups:
        if names:
            yield f"{words}: {visible(', '.join(names))}"
    if old.get("") != new.get(""):
        yield "~ what all its hard blocks share"
