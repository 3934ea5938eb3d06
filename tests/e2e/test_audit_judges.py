"""Go's sumdb and we judge the same proofs, good and corrupted, and never differ."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kala.audit.merkle import CompactRange, consistency_proof, inclusion_proof, leaf_hash, node_hash
from kala.audit.proof import verify_consistency, verify_inclusion
from kala.errors import VerificationError

CASES = 10_000


class Tree:
    """All nodes of a tree of numbered leaves, and its roots by size."""

    def __init__(self, size: int) -> None:
        self.levels = [[leaf_hash(str(number).encode()) for number in range(size)]]
        while len(row := self.levels[-1]) > 1:
            self.levels.append([node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)])
        grown = CompactRange()
        self.roots = [grown.root()]
        for digest in self.levels[0]:
            grown.append(digest)
            self.roots.append(grown.root())

    def node(self, level: int, index: int) -> bytes:
        return self.levels[level][index]


@dataclass
class Case:
    """One proof for both judges."""

    kind: str
    first: int
    size: int
    hash: bytes
    root: bytes
    proof: list[bytes]

    def line(self) -> str:
        def text(digest: bytes) -> str:
            return base64.b64encode(digest).decode()

        return json.dumps(
            {
                "Kind": self.kind,
                "A": self.first,
                "Size": self.size,
                "Hash": text(self.hash),
                "Root": text(self.root),
                "Proof": [text(step) for step in self.proof],
            }
        )

    def holds_for_us(self) -> bool:
        try:
            if self.kind == "inclusion":
                verify_inclusion(self.hash, self.first, self.size, self.proof, self.root)
            else:
                verify_consistency(self.first, self.size, self.proof, self.hash, self.root)
        except VerificationError:
            return False
        return True


def make_case(tree: Tree, dice: random.Random) -> Case:
    size = dice.randint(1, len(tree.levels[0]))
    first = dice.randrange(size)
    if dice.random() < 0.5:
        proof = inclusion_proof(first, size, tree.node)
        case = Case("inclusion", first, size, tree.levels[0][first], tree.roots[size], proof)
    else:
        first += 1
        proof = consistency_proof(first, size, tree.node)
        case = Case("consistency", first, size, tree.roots[first], tree.roots[size], proof)
    if dice.random() < 0.5:
        corrupt(case, dice)
    return case


def corrupt(case: Case, dice: random.Random) -> None:
    """Changes one thing, as an attacker or a bug might."""

    def flipped(digest: bytes) -> bytes:
        return (int.from_bytes(digest, "big") ^ 1 << dice.randrange(256)).to_bytes(32, "big")

    match dice.randrange(8):
        case 0:
            case.hash = flipped(case.hash)
        case 1:
            case.root = flipped(case.root)
        case 2:
            case.first += dice.choice((-2, -1, 1, 2))
        case 3:
            case.size += dice.choice((-2, -1, 1, 2))
        case 4:
            case.proof = case.proof[:-1]
        case 5:
            case.proof = [*case.proof, dice.randbytes(32)]
        case 6:
            dice.shuffle(case.proof)
        case 7 if case.proof:
            place = dice.randrange(len(case.proof))
            case.proof[place] = flipped(case.proof[place])


def test_go_and_we_judge_ten_thousand_proofs_alike(go_checker: Path) -> None:
    dice = random.Random(20_261_121)
    tree = Tree(700)
    cases = [make_case(tree, dice) for _ in range(CASES)]
    lines = "".join(f"{case.line()}\n" for case in cases)
    judged = subprocess.run(
        [go_checker, "judge"], input=lines, capture_output=True, text=True, timeout=120, check=True
    )
    go_says = [word == "true" for word in judged.stdout.split()]
    we_say = [case.holds_for_us() for case in cases]
    different = [case.line() for case, go, we in zip(cases, go_says, we_say, strict=True) if go is not we]
    assert not different, different[:3]
    assert CASES * 0.4 < sum(we_say) < CASES * 0.7
