"""From findings to changes of text: which rewrite fits which finding, and the text with some of them made.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.tools.code.model import CodeLanguage, Finding, SourceFile
from services.tools.code.repair.model import Change, DeclinedError, Place, Proposal
from services.tools.code.repair.rewrites import LEFT, REWRITES
from services.tools.code.repair.tree import Tree
from services.tools.code.validate import language_of

NO_REWRITE: Final = "there is no safe rewrite for this; see the finding's own advice"


@dataclass(frozen=True, slots=True)
class Made:
    """A rewrite of one place of one file, and the findings that it is to cure."""

    path: str
    proposal: Proposal
    findings: tuple[Finding, ...]

    @property
    def start(self) -> int:
        """First byte that changes."""
        return self.proposal.changes[0].start

    @property
    def end(self) -> int:
        """Just past the last byte that changes."""
        return max(change.end for change in self.proposal.changes)


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be made of one file's findings; `left` says why not, by fingerprint."""

    made: tuple[Made, ...]
    left: dict[str, str]
    tree: Tree | None = None


def plan_of(file: SourceFile, findings: Sequence[Finding]) -> Plan:
    """Find a rewrite for every finding of a file."""
    left: dict[str, str] = {}
    if (file.language or language_of(file.path)) is not CodeLanguage.PYTHON:
        return Plan((), {each.fingerprint: "only Python is rewritten" for each in findings})
    try:
        tree = Tree.parse(file.content)
    except DeclinedError as declined:
        return Plan((), {each.fingerprint: str(declined) for each in findings})
    found: dict[Proposal, list[Finding]] = {}
    for finding in findings:
        try:
            proposal = _proposal(tree, finding)
        except DeclinedError as declined:
            left[finding.fingerprint] = str(declined)
            continue
        except RecursionError:
            left[finding.fingerprint] = "the file is nested too deeply"
            continue
        if proposal is None:
            left[finding.fingerprint] = LEFT.get(finding.rule, NO_REWRITE)
        else:
            found.setdefault(proposal, []).append(finding)
    made: list[Made] = []
    taken: list[Change] = []
    for proposal, cured in found.items():
        if any(_overlap(change, other) for change in proposal.changes for other in taken):
            for finding in cured:
                left[finding.fingerprint] = "it lies in another rewrite; repair the result once more"
            continue
        taken.extend(proposal.changes)
        made.append(Made(file.path, proposal, tuple(cured)))
    return Plan(tuple(made), left, tree)


def rewritten(file: SourceFile, plan: Plan, chosen: Collection[Made]) -> SourceFile:
    """The file with some of its plan's rewrites made."""
    made = [each for each in plan.made if each in chosen]
    if not made or plan.tree is None:
        return file
    changes = [change for each in made for change in each.proposal.changes]
    imports = frozenset(name for each in made for name in each.proposal.imports)
    if imports:
        changes.append(plan.tree.import_change(sorted(imports)))
    text = applied(plan.tree.text, changes)
    return SourceFile(file.path, text.decode("utf-8", "surrogatepass"), file.language)


def applied(text: bytes, changes: Iterable[Change]) -> bytes:
    """Put changes into a text; they do not overlap."""
    written, at = bytearray(), 0
    for change in sorted(changes, key=lambda each: (each.start, each.end)):
        written += text[at : change.start] + change.text.encode("utf-8", "surrogatepass")
        at = change.end
    return bytes(written + text[at:])


def _proposal(tree: Tree, finding: Finding) -> Proposal | None:
    place = Place(finding.span.start_byte, finding.span.end_byte)
    found = _proposal_at(tree, finding.rule, place)
    if found is not None:
        return found
    # Some engines point at one argument of the call that is meant.
    wider = tree.around(place)
    return None if wider is None or wider == place else _proposal_at(tree, finding.rule, wider)


def _proposal_at(tree: Tree, rule: str, place: Place) -> Proposal | None:
    declined: DeclinedError | None = None
    for rewrite in REWRITES:
        if rule not in rewrite.rules:
            continue
        try:
            proposal = rewrite.propose(tree, place)
        except DeclinedError as error:
            declined = declined or error
            continue
        if proposal is not None:
            return proposal
    if declined is not None:
        raise declined
    return None


def _overlap(one: Change, other: Change) -> bool:
    return one.start < other.end and other.start < one.end
