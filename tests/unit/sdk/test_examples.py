"""The examples do what they say, against a scripted gateway."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from PIL import Image

from kala.client import KalaClient
from kala.client_async import AsyncKalaClient
from kala.errors import InvalidArgumentError, VerificationError
from kala.target import Target
from services.common.images import check_image
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, completion, failure

EXAMPLES = Path(__file__).parents[3] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def client_of(gateway: FakeGateway) -> KalaClient:
    return KalaClient(Target("http://127.0.0.1:8800", "kala_x"), gateway.transport, lambda _: None)


# --- PDF pages


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    """Two pages of A4, the second turned."""
    path = tmp_path / "report.pdf"
    upright, turned = (
        Image.new("RGB", size, colour) for size, colour in [((595, 842), "white"), ((842, 595), "red")]
    )
    upright.save(path, "PDF", resolution=72, save_all=True, append_images=[turned])
    return path  # fmt: skip


def test_every_page_is_asked_about_as_an_image_in_the_request(
    pdf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = FakeGateway([completion("A white page."), completion("A red page.")])
    assert (
        example("pdf_pages").main(
            [str(pdf), "--question", "What is it?", "--model", "vl"], client_of(gateway)
        )
        == 0
    )
    first, second = gateway.chats
    question, image = first["messages"][0]["content"]
    assert (first["model"], question["text"]) == ("vl", "What is it?")
    uri = image["image_url"]["url"]
    facts = check_image(uri, "url")
    assert (facts.format, facts.height) == ("png", 1600)
    second_uri = second["messages"][0]["content"][1]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(second_uri.partition(",")[2]))) as shown:
        assert shown.width == 1600
        red, green, _blue = shown.getpixel((800, 500))
    assert (red > 250, green < 5) == (True, True)  # a JPEG inside the PDF
    said = capsys.readouterr().out
    assert said.index("--- page 1\nA white page.") < said.index("--- page 2\nA red page.")
    assert RECEIPT_ID in said


def test_pages_can_be_chosen(pdf: Path) -> None:
    gateway = FakeGateway([completion("A red page.")])
    assert example("pdf_pages").main([str(pdf), "--pages", "2"], client_of(gateway)) == 0
    assert len(gateway.chats) == 1


@pytest.mark.parametrize("pages", ["0", "2-1", "x", "", "1-"], ids=str)
def test_what_is_no_range_of_pages_is_said_to_be_none(pdf: Path, pages: str) -> None:
    with pytest.raises(SystemExit):
        example("pdf_pages").main([str(pdf), "--pages", pages], client_of(FakeGateway()))


def test_a_page_that_is_not_there_and_a_file_that_is_no_pdf_are_named(pdf: Path, tmp_path: Path) -> None:
    module = example("pdf_pages")
    with pytest.raises(InvalidArgumentError, match="pages 1 to 2"):
        list(module.pages_of(pdf, range(3, 4)))
    broken = tmp_path / "broken.pdf"
    broken.write_text("no PDF")
    with pytest.raises(InvalidArgumentError, match=r"broken\.pdf cannot be read as a PDF"):
        list(module.pages_of(broken))
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        list(module.pages_of(tmp_path / "absent.pdf"))


def test_a_huge_page_becomes_no_huge_picture(tmp_path: Path) -> None:
    path = tmp_path / "huge.pdf"
    Image.new("L", (1, 1)).resize((200, 200)).save(path, "PDF", resolution=1)  # 14,400 points a side
    (page,) = example("pdf_pages").pages_of(path)
    assert max(Image.open(io.BytesIO(page.png)).size) == 1600


def test_a_suite_that_lets_no_images_pass_says_how_to(pdf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = FakeGateway([completion("No judge can read it.", outcome="REFUSE")])
    assert example("pdf_pages").main([str(pdf)], client_of(gateway)) == 2
    assert "KALA_ETHICS_UNJUDGED_PARTS=allow" in capsys.readouterr().err
    assert len(gateway.chats) == 1


# --- categories


def categorised(category: str, reason: str = "by its name") -> Any:
    return completion(json.dumps({"category": category, "reason": reason}))


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("medical_report_2024.pdf", "Medical Record"),
        ("invoice_123.pdf", "Bill"),
        ("complaint_filed.pdf", "Pleading"),
    ],
)
def test_a_document_is_categorised_by_a_schema(name: str, category: str) -> None:
    module, gateway = example("document_categorizer"), FakeGateway([categorised(category)])
    categorizer = module.LLMCategorizer(provider="lmstudio", client=client_of(gateway))
    assert categorizer.categorize_document(name) == category
    (chat,) = gateway.chats
    allowed = chat["response_format"]["json_schema"]["schema"]["properties"]["category"]["enum"]
    assert category in allowed
    assert name in chat["messages"][1]["content"]
    assert gateway.seen[0].headers["x-kala-provider"] == "lmstudio"
    assert gateway.seen[0].headers["x-kala-truncation"] == "content-budget"


def test_the_beginning_of_a_text_counts(tmp_path: Path) -> None:
    module, gateway = example("document_categorizer"), FakeGateway([categorised("Bill")])
    document = tmp_path / "note.txt"
    document.write_text("Amount due: 12 euros")
    module.LLMCategorizer(provider="auto", client=client_of(gateway)).categorise(document)
    assert "Amount due" in gateway.chats[0]["messages"][1]["content"]
    assert "x-kala-provider" not in gateway.seen[0].headers


def test_one_that_fails_stops_no_other_and_ends_the_command_with_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = failure(400, "context_length_exceeded", "the prompt has 9 tokens")
    gateway = FakeGateway([categorised("Bill"), refused, completion("No.", outcome="REFUSE")])
    module = example("document_categorizer")
    module.AT_ONCE = 1
    assert module.main(["a.pdf", "b.pdf", "c.pdf"], client_of(gateway)) == 1
    said = capsys.readouterr().out
    assert "a.pdf: Bill" in said
    assert "b.pdf: the prompt has 9 tokens" in said
    assert "c.pdf: the Five Laws refused it" in said


def test_providers_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    away = failure(400, "no_model_loaded", "lmstudio: no model is loaded")
    gateway = FakeGateway([categorised("Bill"), away])
    module = example("document_categorizer")
    assert module.main(["a.pdf", "--compare", "ollama,lmstudio"], client_of(gateway)) == 0
    said = capsys.readouterr().out
    assert "OLLAMA performance:\n  Categorised:  1 of 1" in said
    assert "LMSTUDIO performance:\n  Categorised:  0 of 1" in said
    assert "Problem:      lmstudio: no model is loaded" in said


def test_documents_are_ranked_by_their_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = [[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]]
    rows = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    gateway = FakeGateway([httpx.Response(200, json={"data": rows})])
    (tmp_path / "far.txt").write_text("a recipe")
    (tmp_path / "near.txt").write_text("an invoice")
    documents = [str(tmp_path / name) for name in ("far.txt", "near.txt")]
    module = example("document_categorizer")
    arguments = [*documents, "--similar-to", "unpaid bills", "--embedding-model", "nomic"]
    assert module.main(arguments, client_of(gateway)) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert (first.split()[1], second.split()[1]) == ("near.txt", "far.txt")
    body = json.loads(gateway.seen[0].content)
    assert (body["model"], body["input"]) == (
        "nomic",
        ["unpaid bills", "far.txt\na recipe", "near.txt\nan invoice"],
    )


def test_vectors_of_two_models_are_not_compared() -> None:
    with pytest.raises(InvalidArgumentError, match="use one model"):
        example("document_categorizer").cosine([1.0], [1.0, 2.0])
    assert example("document_categorizer").cosine([0.0], [1.0]) == 0.0


def test_the_first_page_of_a_pdf_is_seen_where_that_is_wanted(
    pdf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    gateway = FakeGateway([categorised("Bill"), categorised("Bill")])
    module = example("document_categorizer")
    assert module.main([str(pdf), "--vision", "--model", "vl"], client_of(gateway)) == 0
    text, image = gateway.chats[0]["messages"][1]["content"]
    assert "report.pdf" in text["text"]
    assert check_image(image["image_url"]["url"], "url").format == "png"
    module.LLMCategorizer(client=client_of(gateway)).categorise(pdf)
    assert isinstance(gateway.chats[1]["messages"][1]["content"], str)


# --- articles


def by_role(**answers: dict[str, Any]) -> Callable[[httpx.Request], httpx.Response]:
    """A gateway that answers each role in its own way, whichever asks first."""

    def answer(request: httpx.Request) -> httpx.Response:
        role = request.headers.get("x-kala-role", "")
        if role not in answers:
            body = {"message": "role: not configured", "type": "invalid_request_error", "param": "role"}
            return httpx.Response(400, json={"error": body})
        return completion(json.dumps(answers[role]))

    return answer


async def score(handler: Any, *arguments: str) -> int:  # Any: what httpx takes
    module = example("article_scoring")
    async with AsyncKalaClient(Target("http://x", "k"), httpx.MockTransport(handler)) as client:
        code: int = await module.run(module.parse(list(arguments)), client)
        return code


@pytest.fixture
def article(tmp_path: Path) -> Path:
    path = tmp_path / "apt.txt"
    path.write_text("The actor ran wmic process call create. It beacons each hour.")
    return path


RANKED = {"score": 8, "reason": "an exact command"}
FOUND = {"observables": ["wmic process call create", "invented.exe"]}


async def test_an_article_is_scored_by_a_model_for_each_step(
    article: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[httpx.Request] = []
    answer = by_role(rank=RANKED, extract=FOUND)

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer(request)

    assert await score(handler, str(article), "--provider", "lmstudio") == 0
    said = capsys.readouterr().out
    assert "apt.txt: 8/10  an exact command" in said
    assert "- wmic process call create" in said
    assert "invented.exe" not in said
    assert RECEIPT_ID in said
    assert [request.headers["x-kala-role"] for request in seen] == ["rank", "extract"]
    for request in seen:
        body = json.loads(request.content)
        assert (body["temperature"], body["seed"]) == (0.0, 42)
        assert body["response_format"]["json_schema"]["strict"] is True
        assert request.headers["x-kala-provider"] == "lmstudio"
        assert request.headers["x-kala-truncation"] == "content-budget"


async def test_a_suite_without_the_roles_scores_with_its_own_model(
    article: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await score(by_role(**{"": {**RANKED, **FOUND}}), str(article)) == 0
    assert "8/10" in capsys.readouterr().out


async def test_an_article_that_was_cut_is_said_to_be_and_one_that_fails_stops_no_other(
    article: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = completion(json.dumps({**RANKED, **FOUND})).json()
        body["kala"]["fitted"] = {"prompt_tokens": 9000, "fitted_tokens": 6700, "dropped_messages": 0}
        return httpx.Response(200, json=body)

    assert await score(handler, str(article), str(tmp_path / "absent.txt")) == 1
    said = capsys.readouterr().out
    assert "apt.txt: 8/10 (cut to the model's budget)" in said
    assert "absent.txt: articles: " in said


async def test_a_question_is_answered_from_the_chunks_that_fit_it(
    article: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Nothing of the kind. " * 200)
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["messages"][1]["content"])
        return completion("By wmic [1].")

    assert await score(handler, str(other), str(article), "--ask", "Which actor ran wmic process call?") == 0
    assert capsys.readouterr().out == "By wmic [1].\n  [1] apt.txt\n"
    assert "[1] apt.txt\nThe actor ran wmic" in asked[0]


# --- the whole workflow


def test_a_log_is_proved_only_by_the_key_that_signed_it(tmp_path: Path) -> None:
    log = tmp_path / "session_x.jsonl"
    (tmp_path / "audit.vkey").write_text("")
    log.write_text(json.dumps({"receipt": RECEIPT_ID, "proof": "c2sp.org/tlog-proof@v1\n"}) + "\n")
    with pytest.raises(VerificationError):
        example("complete_workflow").prove(log)
    log.write_text(json.dumps({"receipt": RECEIPT_ID, "proof": None}) + "\n")
    assert example("complete_workflow").prove(log) == 0
