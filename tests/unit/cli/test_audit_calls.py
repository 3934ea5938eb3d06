"""`kala audit export`, `read`, `gaps`, `erase`, `certificate` and `hold`, against a scripted gateway."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
from kala.audit import erasure
from kala.cli import main
from kala.client import KalaClient
from kala.target import Target
from tests.fakes.audit_log import ORIGIN, signer
from tests.fakes.gateway import failure
from tests.fakes.mirrors import export_of

AT = ("--url", "http://127.0.0.1:8800", "--key", "kala_x")
SUBJECT = "ab" * 32
REASON = ("--reason", "asked for by letter 12")
Captured = pytest.CaptureFixture[str]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Scripted:
    """Answers by path and remembers what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else dict(request.url.params)
        self.asked.append((request.method, request.url.path, body))
        for end, answer in self.answers.items():
            if request.url.path.endswith(end):
                return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)
        return httpx.Response(404, json={"error": {"code": 404, "message": "no such", "status": "NOT_FOUND"}})


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scripted]:
    """Let commands reach a scripted gateway instead of the network."""

    def install(answers: dict[str, Any]) -> Scripted:
        scripted = Scripted(**answers)

        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, httpx.MockTransport(scripted), lambda _: None)

        monkeypatch.setattr(kala.client, "KalaClient", client)
        return scripted

    return install


Use = Callable[[dict[str, Any]], Scripted]


def parts(*messages: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, content="".join(json.dumps(one) + "\n" for one in messages).encode())


class TestExport:
    """`kala audit export`."""

    def test_what_it_writes_is_verified_on_a_machine_with_the_key_alone(
        self, tmp_path: Path, use: Use, capsys: Captured
    ) -> None:
        made = export_of([b"entry %d" % n for n in range(300)], tmp_path / "made.jsonl")
        data, manifest = made.read_bytes(), made.with_name("made.jsonl.manifest.json").read_bytes()
        gateway = use(
            {
                ":export": parts(
                    {"data": b64(data[:1_000])}, {"data": b64(data[1_000:])}, {"manifest": b64(manifest)}
                )
            }
        )
        out = tmp_path / "out.jsonl"
        given = [
            "--from",
            "2026-01-01T00:00:00Z",
            "--type",
            "chat.outcome",
            "--outcome",
            "refuse",
            "--law",
            "1",
        ]
        assert main(["audit", "export", str(out), *given, "--tenant", "t", *AT]) == 0
        assert gateway.asked[0][2] == {
            "filter": {
                "from": "2026-01-01T00:00:00Z",
                "tenant": "t",
                "types": ["chat.outcome"],
                "outcomes": ["OUTCOME_REFUSE"],
                "law": 1,
            },
            "format": "EXPORT_FORMAT_JSONL",
        }
        assert out.read_bytes() == data
        assert out.stat().st_mode & 0o077 == 0
        assert main(["audit", "verify", str(out), "--vkey", str(signer().verifier)]) == 0
        assert f"kala audit verify {out}" in capsys.readouterr().err

    def test_a_link_that_was_laid_beside_is_not_written_through(self, tmp_path: Path, use: Use) -> None:
        use({":export": parts({"data": b64(b"words\n")}, {"manifest": b64(b"{}")})})
        out, victim = tmp_path / "out.jsonl", tmp_path / "victim"
        (tmp_path / f".{out.name}.{os.getpid()}").symlink_to(victim)
        assert main(["audit", "export", str(out), *AT]) == 0
        assert not victim.exists()
        assert not out.is_symlink()

    @pytest.mark.parametrize(
        "messages",
        [
            [{"data": b64(b"a\n")}],
            [{"data": b64(b"a\n")}, {"error": {"code": 503, "message": "gone"}}],
            [{"data": "?"}],
        ],
        ids=["no manifest", "an error", "nonsense"],
    )
    def test_an_export_that_broke_off_leaves_no_file(
        self, tmp_path: Path, use: Use, messages: list[dict[str, Any]]
    ) -> None:
        use({":export": parts(*messages)})
        assert main(["audit", "export", str(tmp_path / "out.jsonl"), *AT]) == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_is_there_is_not_replaced_unasked(
        self, tmp_path: Path, use: Use, capsys: Captured
    ) -> None:
        gateway = use({":export": parts({"manifest": b64(b"{}")})})
        (tmp_path / "out.cef.manifest.json").write_text("mine")
        asked = ["audit", "export", str(tmp_path / "out.cef"), "--format", "cef", *AT]
        assert main(asked) == 1
        assert "--force" in capsys.readouterr().err
        assert gateway.asked == []
        assert main([*asked, "--force"]) == 0
        assert (tmp_path / "out.cef.manifest.json").read_bytes() == b"{}"

    @pytest.mark.parametrize("wrong", [["--format", "xml"], ["--outcome", "maybe"]])
    def test_a_wrong_choice_names_the_right_ones(
        self, tmp_path: Path, use: Use, capsys: Captured, wrong: list[str]
    ) -> None:
        use({})
        assert main(["audit", "export", str(tmp_path / "x"), *wrong, *AT]) == 1
        assert f"kala: {wrong[0]}: must be one of" in capsys.readouterr().err


class TestRead:
    """`kala audit read`."""

    @pytest.mark.parametrize("entry", ["7", "entries/7", "rcpt_" + "0f" * 16])
    def test_a_payload_is_printed_for_a_reason(self, use: Use, capsys: Captured, entry: str) -> None:
        gateway = use(
            {":read": {"data": b64(b"the text\n"), "salt": b64(b"s" * 32)}, "0f": {"receipt": {"index": "7"}}}
        )
        assert main(["audit", "read", entry, "request", *REASON, *AT]) == 0
        assert capsys.readouterr().out == "the text\n"
        assert gateway.asked[-1] == (
            "POST",
            "/kala/v1/audit/entries/7/payloads/request:read",
            {"reason": REASON[1]},
        )

    def test_a_payload_is_written_for_its_reader_alone(
        self, tmp_path: Path, use: Use, capsys: Captured
    ) -> None:
        use({":read": {"data": b64(b"\xff\0"), "salt": b64(b"s" * 32)}})
        assert (
            main(["audit", "read", "7", "request", *REASON, "--out", str(tmp_path / "p"), "--json", *AT]) == 0
        )
        assert (tmp_path / "p").read_bytes() == b"\xff\0"
        assert (tmp_path / "p").stat().st_mode & 0o077 == 0
        assert json.loads(capsys.readouterr().out) == {
            "entry": "entries/7",
            "kind": "request",
            "bytes": 2,
            "opening": b"s".hex() * 32,
        }

    def test_an_erased_payload_and_a_wrong_name_are_told(self, use: Use, capsys: Captured) -> None:
        use({})
        assert main(["audit", "read", "7", "request", *REASON, *AT]) == 1
        assert "no such" in capsys.readouterr().err
        assert main(["audit", "read", "seven", "request", *REASON, *AT]) == 1
        assert "entries/<index>" in capsys.readouterr().err


def test_gaps_that_nobody_tells_of_are_no_gaps_found(use: Use, capsys: Captured) -> None:
    """A gateway that was away ended the command with 1, as a log with gaps does."""
    use({"/gaps": failure(503, "audit_unavailable", "the log is away")})
    assert main(["audit", "gaps", *AT]) == 2
    assert "unverifiable" in capsys.readouterr().err


def test_gaps_are_listed_and_end_with_1(use: Use, capsys: Captured) -> None:
    producer = {"id": "gateway-0", "boot": b64(b"bootboot"), "sequence": "4"}
    gateway = use(
        {
            "/gaps": {
                "gaps": [
                    {
                        "kind": "GAP_KIND_SEQUENCE_HOLE",
                        "producer": producer,
                        "first_missing": "5",
                        "last_missing": "6",
                    },
                    {"kind": "GAP_KIND_UNMATCHED_INTENT", "producer": producer, "entry": "entries/9"},
                ]
            }
        }
    )
    assert main(["audit", "gaps", "--intent-seconds", "60", "--tenant", "t", *AT]) == 1
    printed = capsys.readouterr().out
    assert "numbers 5 to 6" in printed
    assert "entries/9" in printed
    assert (gateway.asked[0][2]["intent_age"], gateway.asked[0][2]["filter.tenant"]) == ("60s", "t")
    use({"/gaps": {"gaps": []}})
    assert main(["audit", "gaps", *AT]) == 0


def certified(**changes: Any) -> dict[str, Any]:
    value = {
        "schema": erasure.SCHEMA,
        "log": ORIGIN,
        "request_id": "01" * 16,
        "subject": SUBJECT,
        "tenant": "default",
        "erased_at": "2026-11-21T00:00:00.000000Z",
        "covers_entries_below": 40,
        "stores": [{"store": "audit.payloads", "items": 3, "remaining": ["adapters/a@1"]}],
        "receipt": "rcpt_" + "0f" * 16,
    }
    certificate = erasure.certificate_of({**value, **changes})
    return {
        "certificate": b64(certificate),
        "signature": erasure.sign_certificate(certificate, signer()),
        "stores": value["stores"],
        "receipt": {"name": "receipts/" + value["receipt"]},
    }


class TestErase:
    """`kala audit erase` and `kala audit certificate`."""

    def test_the_certificate_of_an_erasure_is_kept_and_checked_offline(
        self, tmp_path: Path, use: Use, capsys: Captured
    ) -> None:
        gateway = use({":erase": certified()})
        out = tmp_path / "c.json"
        assert main(["audit", "erase", SUBJECT, *REASON, "--out", str(out), "--yes", *AT]) == 0
        printed = capsys.readouterr()
        assert "audit.payloads  3 erased" in printed.out
        assert "to decide: adapters/a@1" in printed.out
        _, path, body = gateway.asked[0]
        assert path == f"/kala/v1/audit/subjects/{SUBJECT}:erase"
        assert body["reason"] == REASON[1]
        assert base64.b64decode(body["request_id"]).hex() in printed.err
        check = ["audit", "certificate", str(out), "--vkey", str(signer().verifier)]
        assert main(check) == 0
        assert f"subjects/{SUBJECT}" in capsys.readouterr().out
        out.write_bytes(out.read_bytes().replace(b'"items":3', b'"items":4'))
        assert main(check) == 1
        assert "over another certificate" in capsys.readouterr().err
        out.with_name("c.json.sig").unlink()
        assert main(check) == 2

    def test_a_person_or_a_key_is_named_by_the_gateway(self, tmp_path: Path, use: Use) -> None:
        for given, who in (
            (["--person", "anna"], {"person": "anna"}),
            (["--of-key", "k1"], {"key": "keys/k1"}),
        ):
            gateway = use({"subjects:name": {"name": f"subjects/{SUBJECT}"}, ":erase": certified()})
            out = str(tmp_path / given[1])
            assert main(["audit", "erase", *given, *REASON, "--out", out, "--yes", *AT]) == 0
            assert gateway.asked[0][2] == who
            assert gateway.asked[1][1] == f"/kala/v1/audit/subjects/{SUBJECT}:erase"

    def test_nothing_is_erased_unconfirmed(
        self, tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = use({":erase": certified()})
        monkeypatch.setattr("typer.confirm", _decline)
        assert main(["audit", "erase", SUBJECT, *REASON, "--out", str(tmp_path / "c"), *AT]) == 130
        assert gateway.asked == []

    def test_an_unfinished_erasure_is_gone_on_with(self, tmp_path: Path, use: Use, capsys: Captured) -> None:
        use({":erase": failure(503, "erasure_unfinished", "not finished; tools: does not answer")})
        asked = ["audit", "erase", SUBJECT, *REASON, "--out", str(tmp_path / "c"), "--yes", *AT]
        assert main(asked) == 1
        printed = capsys.readouterr().err
        assert "not finished" in printed
        assert not (tmp_path / "c").exists()
        request = printed.partition("--request-id ")[2][:32]
        gateway = use({":erase": certified()})
        assert main([*asked, "--request-id", request]) == 0
        assert base64.b64decode(gateway.asked[0][2]["request_id"]).hex() == request

    @pytest.mark.parametrize(
        "given",
        [[], [SUBJECT, "--person", "a"], ["xyz"], [SUBJECT, "--request-id", "1"]],
        ids=["nobody", "two", "no name", "no id"],
    )
    def test_what_is_wrong_is_told_before_anything_is_erased(
        self, tmp_path: Path, use: Use, given: list[str]
    ) -> None:
        gateway = use({":erase": certified()})
        assert main(["audit", "erase", *given, *REASON, "--out", str(tmp_path / "c"), "--yes", *AT]) == 1
        assert gateway.asked == []

    def test_nothing_is_erased_where_the_certificate_could_not_be_kept(
        self, tmp_path: Path, use: Use
    ) -> None:
        gateway = use({":erase": certified()})
        (tmp_path / "c.sig").write_text("mine")
        for out in (tmp_path / "c", tmp_path / "missing" / "c"):
            assert main(["audit", "erase", SUBJECT, *REASON, "--out", str(out), "--yes", *AT]) == 1
        assert gateway.asked == []

    def test_a_certificate_that_cannot_be_written_after_all_is_printed(
        self, tmp_path: Path, use: Use, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use({":erase": certified()})
        monkeypatch.setattr("kala.suite.layout.write_private_file", _full_disk)
        assert main(["audit", "erase", SUBJECT, *REASON, "--out", str(tmp_path / "c"), "--yes", *AT]) == 1
        printed = capsys.readouterr()
        assert erasure.SCHEMA in printed.out
        assert "both are printed" in printed.err


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def _decline(*_: object, **__: object) -> None:
    import typer

    raise typer.Abort


def test_a_hold_is_placed_and_released(use: Use, capsys: Captured) -> None:
    gateway = use({":hold": {"hold": "holds/h1"}, ":release": {"hold": "holds/h1"}})
    assert main(["audit", "hold", "place", SUBJECT, *REASON, *AT]) == 0
    assert main(["audit", "hold", "release", "h1", *REASON, *AT]) == 0
    assert [path for _, path, _ in gateway.asked] == [
        f"/kala/v1/audit/subjects/{SUBJECT}:hold",
        "/kala/v1/audit/holds/h1:release",
    ]
    printed = capsys.readouterr().out
    assert "holds/h1 placed" in printed
    assert "holds/h1 released" in printed
