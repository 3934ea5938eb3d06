"""A question about the pages of a PDF, put to a vision model: every page travels as an image inside the request.

    python examples/pdf_pages.py report.pdf --pages 1-3 --question "What is the total, and who signed?"

Needs `pip install 'kala-suite[examples]'`, a suite (`kala up`) and a model that sees (LM Studio:
`LMSTUDIO_VISION_MODEL`).  No judge of this release reads images, so the suite refuses them unless its operator said
`KALA_ETHICS_UNJUDGED_PARTS=allow`; the question and the answer are judged as always.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kala.client import KalaClient
from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError
from kala.replies import ChatReply
from kala.target import find_target

POINTS_PER_INCH = 72
LONGEST_SIDE_PIXELS = 1600
"""Small print can be read at it, and a vision model scales a larger page down anyway."""

MAX_PAGES = 50
"""One request a page: more is a batch job."""


@dataclass(frozen=True)
class Page:
    """A page as a picture."""

    number: int  # from 1
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as a request carries it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def pages_of(
    pdf: Path, wanted: range | None = None, *, longest_side: int = LONGEST_SIDE_PIXELS
) -> Iterator[Page]:
    """Draw pages one after the other, `wanted` counted from 1; raises KalaError for what is no PDF or not in it."""
    try:
        import pypdfium2
    except ImportError as error:
        raise FailedPreconditionError(
            "drawing pages needs pypdfium2 and pillow: pip install 'kala-suite[examples]'"
        ) from error
    try:
        document = pypdfium2.PdfDocument(pdf)
    except (OSError, pypdfium2.PdfiumError) as error:
        raise InvalidArgumentError("pdf", f"{pdf} cannot be read as a PDF: {error}") from error
    with document:
        numbers = wanted or range(1, len(document) + 1)
        if numbers.start < 1 or numbers.stop - 1 > len(document):
            raise InvalidArgumentError("pages", f"{pdf} has the pages 1 to {len(document)}")
        if len(numbers) > MAX_PAGES:
            raise InvalidArgumentError("pages", f"at most {MAX_PAGES} at a time; name some with --pages")
        for number in numbers:
            page = document[number - 1]
            # Never larger than asked for, however large the page says it is.
            scale = longest_side / max(page.get_width(), page.get_height(), 1)
            picture = io.BytesIO()
            page.render(scale=min(scale, 300 / POINTS_PER_INCH)).to_pil().save(picture, "png")
            yield Page(number, picture.getvalue())


def ask(client: KalaClient, page: Page, question: str, *, model: str, provider: str | None) -> ChatReply:
    """Put the question about one page."""
    content = [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": page.data_uri, "detail": "high"}},
    ]
    return client.chat(
        [{"role": "user", "content": content}], model=model, provider=provider, temperature=0, max_tokens=500
    )


def parse_pages(text: str) -> range:
    """Read `3` or `1-3`."""
    first, dash, last = text.partition("-")
    try:
        numbers = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        numbers = range(0)
    if not numbers or numbers.start < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a page or a range of pages such as 1-3")
    return numbers


def main(arguments: list[str] | None = None, client: KalaClient | None = None) -> int:
    """Ask about every page and print the answers with their receipts; `client` is for tests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pdf", type=Path)
    parser.add_argument("--question", default="Describe this document.")
    parser.add_argument("--pages", type=parse_pages, help="e.g. 3 or 1-3; all when absent")
    parser.add_argument("--model", default="auto", help="a model that sees")
    parser.add_argument("--provider", help="lmstudio, ollama, llamacpp, …")
    given = parser.parse_args(arguments)
    try:
        with client or KalaClient(find_target()) as open_client:
            for page in pages_of(given.pdf, given.pages):
                reply = ask(open_client, page, given.question, model=given.model, provider=given.provider)
                print(f"--- page {page.number}\n{reply.text}")
                if reply.receipt is not None:
                    print(f"[receipt {reply.receipt.id}]")
                if not reply.allowed:
                    print(
                        "A suite lets images pass only with KALA_ETHICS_UNJUDGED_PARTS=allow.",
                        file=sys.stderr,
                    )
                    return 2
    except KalaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
