"""The examples do what they say, against a scripted gateway."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from kala.client import KalaClient
from kala.errors import InvalidArgumentError
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
    module, gateway = example("categorise_documents"), FakeGateway([categorised(category)])
    categorizer = module.LLMCategorizer(provider="lmstudio", client=client_of(gateway))
    assert categorizer.categorize_document(name) == category
    (chat,) = gateway.chats
    allowed = chat["response_format"]["json_schema"]["schema"]["properties"]["category"]["enum"]
    assert category in allowed
    assert name in chat["messages"][1]["content"]
    assert gateway.seen[0].headers["x-kala-provider"] == "lmstudio"
    assert gateway.seen[0].headers["x-kala-truncation"] == "content-budget"


def test_the_beginning_of_a_text_counts(tmp_path: Path) -> None:
    module, gateway = example("categorise_documents"), FakeGateway([categorised("Bill")])
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
    module = example("categorise_documents")
    module.AT_ONCE = 1
    assert module.main(["a.pdf", "b.pdf", "c.pdf"], client_of(gateway)) == 1
    said = capsys.readouterr().out
    assert "a.pdf: Bill" in said
    assert "b.pdf: the prompt has 9 tokens" in said
    assert "c.pdf: the Five Laws refused it" in said


def test_providers_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    away = failure(400, "no_model_loaded", "lmstudio: no model is loaded")
    gateway = FakeGateway([categorised("Bill"), away])
    module = example("categorise_documents")
    assert module.main(["a.pdf", "--compare", "ollama,lmstudio"], client_of(gateway)) == 0
    said = capsys.readouterr().out
    assert "OLLAMA performance:\n  Categorised:  1 of 1" in said
    assert "LMSTUDIO performance:\n  Categorised:  0 of 1" in said
    assert "Problem:      lmstudio: no model is loaded" in said
