"""The escape suite on the default tier: each case tries to get what it must not have, and each must be held.

Our own cases are in tests/fixtures/tools/escape_cases.yaml. Those that other people wrote are run too where they lie.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools_runtime import unprivileged_directory, unprivileged_python

TESTS = Path(__file__).parents[2]
PROGRAM = TESTS / "fakes" / "escape_program.py"
OURS = TESTS / "fixtures" / "tools" / "escape_cases.yaml"
THEIRS = TESTS.parents[1] / "shared" / "sandbox" / "escape_cases.json"
MIB = 1024 * 1024
TIER = os.environ.get("ESCAPE_TIER", "bubblewrap")

pytestmark = pytest.mark.skipif(
    not os.access("/usr/bin/bwrap", os.X_OK), reason="the default tier needs bubblewrap"
)

CATEGORIES = {"resource", "output", "survivor", "info", "kernel", "network", "signal", "inject", "zone"}
SHORT_LIMITS = {"wall_s": ("wall_seconds", 1), "cpu_s": ("cpu_seconds", 1), "fsize_mb": ("file_bytes", MIB)}


def ours() -> list[dict[str, Any]]:
    document = yaml.safe_load(OURS.read_text(encoding="utf-8"))
    preludes = document["preludes"]
    cases = []
    for case in document["cases"]:
        expected = {"no": ["ESCAPED"], "must": ["HELD"]} | case.get("expected", {})
        made = {"files": {}, "arguments": [], "limits": {}, "create": False} | case
        made["code"] = preludes.get(case["lang"], "") + case["code"]
        cases.append(made | {"expected": expected})
    return cases


def theirs() -> list[dict[str, Any]]:
    if not THEIRS.exists():
        return []
    cases = []
    for case in json.loads(THEIRS.read_text(encoding="utf-8")):
        expected = case["expected"]
        limits = {SHORT_LIMITS[key][0]: value * SHORT_LIMITS[key][1] for key, value in case["limits"].items()}
        cases.append(
            {
                "id": case["id"],
                "lang": case["lang"],
                "code": case["code"],
                "arguments": expected.get("args", []),
                "files": expected.get("files", {}),
                "create": expected.get("create", False),
                "limits": limits,
                "expected": expected,
            }
        )
    return cases


@cache
def results(author: str) -> dict[str, dict[str, Any]]:
    """Run an author's cases once, all of them."""
    cases = ours() if author == "ours" else theirs()
    with unprivileged_directory() as state:
        done = subprocess.run(
            [*unprivileged_python(), str(PROGRAM), TIER, str(state)],
            input=json.dumps(cases),
            capture_output=True,
            text=True,
            cwd="/",
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return {result["id"]: result for result in json.loads(done.stdout)["results"]}


def check(case: dict[str, Any], result: dict[str, Any]) -> None:
    expected = case["expected"]
    output = result.get("output", "")
    assert not result["trouble"], result
    if expected.get("refuse"):
        assert result.get("refused"), result
        return
    assert not result.get("refused"), result
    for words in expected.get("no", ["ESCAPED"]):
        assert words not in output, result
    for words in expected.get("must", []):
        if "@@" not in words:
            assert words in output, result
    if "status" in expected:
        assert result["status"] in expected["status"], result
    assert result["seconds"] <= expected.get("max_wall", 60), result
    assert result["output_bytes"] <= expected.get("max_out", MIB), result


@pytest.mark.parametrize("case", ours(), ids=lambda case: case["id"])
def test_our_case_is_held(case: dict[str, Any]) -> None:
    check(case, results("ours")[case["id"]])


if THEIRS.exists():

    @pytest.mark.parametrize("case", theirs(), ids=lambda case: case["id"])
    def test_their_case_is_held(case: dict[str, Any]) -> None:
        check(case, results("theirs")[case["id"]])

else:

    def test_their_cases_are_held() -> None:
        pytest.skip(f"{THEIRS} is not here: the cases of another author are data that not every checkout has")


def test_our_cases_cover_every_kind_of_attack() -> None:
    cases = ours()
    assert {case["category"] for case in cases} == CATEGORIES
    assert len({case["id"] for case in cases}) == len(cases)
    assert len(cases) >= 50
