"""The command line as a user meets it: quick, silent about internals, one line per failure."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kala.cli import EXIT_BUG, main
from kala.cli import commands as commands_module

HEAVY = ("grpc", "httpx", "rich.console", "sqlalchemy", "torch", "fastapi", "google.protobuf", "cryptography")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kala.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
    )


def imported_by(*arguments: str) -> set[str]:
    code = f"import sys; from kala.cli import main; main({list(arguments)!r}); sys.stderr.write('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines())


def test_help_imports_nothing_heavy() -> None:
    modules = imported_by("--help")
    assert not {name for name in HEAVY if name in modules}


def test_help_is_quick() -> None:
    def cpu_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def once() -> float:
        before = cpu_seconds()
        assert run("--help").returncode == 0
        return cpu_seconds() - before

    # Processor time, not wall time: what the machine does besides is not the command's fault.
    assert min(once() for _ in range(3)) < 0.3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["frobnicate"], 2, "No such command"),
        (["up", "--port", "many"], 2, "--port"),
        (["chat", "hi", "--state", "/nonexistent/kala"], 1, "kala up"),
        (["chat", "hi", "--url", "http://127.0.0.1:1"], 1, "KALA_API_KEY"),
        (["chat", "hi", "--url", "ftp://x", "--key", "k"], 1, "http://127.0.0.1:8800"),
        (["chat", "hi", "--url", "http://127.0.0.1:1", "--key", "k"], 1, "kala up"),
        (["keys", "create", "x", "--scope", "root"], 1, "audit.read"),
        (["keys", "revoke", "../../x"], 1, "kala keys list"),
        (["ethics", "verify"], 1, "--trusted-key"),
        (["ethics", "verify", "--development", "--dir", "/nonexistent"], 1, "no constitution"),
        (["audit", "verify", "--state", "/nonexistent"], 2, "audit.vkey"),
        (["audit", "receipt", "/nonexistent", "--vkey", "a+b+c"], 2, "--vkey"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_failure_is_one_line_with_cause_and_cure(arguments: list[str], code: int, says: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(commands_module, "command_line", broken)
    assert main(["status"]) == EXIT_BUG
    error = capsys.readouterr().err
    assert "this is a bug" in error
    assert "Traceback" not in error


def test_a_stopped_suite_has_a_status(tmp_path: Path) -> None:
    done = run("status", "--json", "--state", str(tmp_path))
    assert done.returncode == 1
    assert '"phase": "stopped"' in done.stdout


def test_stopping_what_does_not_run_is_no_failure(tmp_path: Path) -> None:
    done = run("down", "--state", str(tmp_path))
    assert done.returncode == 0
    assert "no suite runs" in done.stderr


def test_the_logs_of_a_part_are_shown_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "audit.log").write_text("".join(f"line {number}\n" for number in range(100)))
    done = run("logs", "audit", "-n", "2", "--state", str(tmp_path))
    assert done.stdout.splitlines() == ["line 98", "line 99"]
    missing = run("logs", "tools", "--state", str(tmp_path))
    assert missing.returncode == 1
    assert "there are: audit" in missing.stderr


def test_a_bare_group_shows_its_commands() -> None:
    done = run("keys")
    assert done.returncode == 2
    assert "revoke" in done.stderr


def test_keys_are_made_once(tmp_path: Path) -> None:
    first = run("keys", "init", "--out", str(tmp_path / "keys"))
    assert first.returncode == 0
    assert len(first.stdout.splitlines()) == 16
    assert run("keys", "init", "--out", str(tmp_path / "keys")).stdout == ""
