"""A tile API is read over one connection, patiently, and never trusted with more than it was named for."""

from __future__ import annotations

import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kala.audit.mirror import verify_tiles
from kala.audit.report import TamperedError, UnverifiableError
from kala.audit.sources import CONNECTIONS, MAX_BUNDLE_BYTES, DirectorySource, HttpSource
from tests.fakes.audit_log import signer
from tests.fakes.mirrors import Mirror

TRUSTED = [signer().verifier]


@dataclass
class Served:
    """A mirror behind HTTP; `answers` come first, one per request, as status and headers."""

    mirror: Mirror
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    connections: int = 0
    body: bytes | None = None


@contextmanager
def serving(served: Served) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            served.connections += 1
            super().setup()

        def do_GET(self) -> None:
            served.requests.append((self.path, self.headers.get("authorization")))
            status, headers = served.answers.pop(0) if served.answers else (200, {})
            data = served.body or served.mirror.files.get(self.path.removeprefix("/log/"))
            if status == 200 and data is None:
                status = 404
            body = data if status == 200 and data is not None else b"no"
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/log/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def leaves(count: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(count)]


def test_a_log_behind_an_address_is_verified_over_few_connections_with_its_token() -> None:
    served = Served(Mirror(leaves(7_000)))
    with serving(served) as url, closing(HttpSource(url, {"authorization": "Bearer t"})) as source:
        assert verify_tiles(source, TRUSTED).entries == 7_000
    assert 1 <= served.connections <= CONNECTIONS
    asked = [path for path, _ in served.requests]
    assert len(asked) == len(set(asked)) == len(served.mirror.files)
    assert {token for _, token in served.requests} == {"Bearer t"}


def test_what_the_server_does_not_have_is_missing_from_the_log() -> None:
    served = Served(Mirror(leaves(300)))
    del served.mirror.files["tile/entries/001.p/44"]
    with (
        serving(served) as url,
        closing(HttpSource(url)) as source,
        pytest.raises(TamperedError, match="entry 256"),
    ):
        verify_tiles(source, TRUSTED)


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_key_is_no_verdict_on_the_log(status: int) -> None:
    served = Served(Mirror(leaves(3)), [(status, {})])
    with (
        serving(served) as url,
        closing(HttpSource(url)) as source,
        pytest.raises(UnverifiableError, match="give the token"),
    ):
        verify_tiles(source, TRUSTED)


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    served = Served(
        Mirror(leaves(3)), [(429, {"retry-after": "7"}), (503, {}), (429, {"retry-after": "900"})]
    )
    waited: list[float] = []
    with serving(served) as url, closing(HttpSource(url, sleep=waited.append)) as source:
        assert verify_tiles(source, TRUSTED).entries == 3
    assert waited == [7.0, 0.5, 20.0]


@pytest.mark.parametrize(("status", "tries"), [(503, 5), (500, 1), (302, 1)])
def test_a_server_that_fails_is_no_verdict_on_the_log(status: int, tries: int) -> None:
    elsewhere = {"location": "http://127.0.0.1:9/"}
    served = Served(Mirror(leaves(3)), [(status, elsewhere)] * 5)
    with (
        serving(served) as url,
        closing(HttpSource(url, sleep=lambda _: None)) as source,
        pytest.raises(UnverifiableError, match=f"the server answers {status}"),
    ):
        verify_tiles(source, TRUSTED)
    assert len(served.requests) == tries


def test_a_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    served = Served(Mirror(leaves(3)), [(200, {"connection": "close"})])
    with serving(served) as url, closing(HttpSource(url, connections=1)) as source:
        assert verify_tiles(source, TRUSTED).entries == 3
    assert served.connections == 2


def test_nobody_there_is_no_verdict_on_the_log() -> None:
    with serving(Served(Mirror([]))) as url:
        pass
    with closing(HttpSource(url, sleep=lambda _: None)) as source, pytest.raises(UnverifiableError):
        source.read("checkpoint")


def test_an_answer_without_end_is_read_no_further_than_the_largest_bundle() -> None:
    served = Served(Mirror(leaves(3)), body=b"x" * (MAX_BUNDLE_BYTES + 100_000))
    with serving(served) as url, closing(HttpSource(url)) as source:
        assert len(source.read("checkpoint") or b"") == MAX_BUNDLE_BYTES + 1
        assert len(source.read("checkpoint") or b"") == MAX_BUNDLE_BYTES + 1


@pytest.mark.parametrize(
    "url", ["", "ftp://a/", "http://", "http://a:b/", "http://[/", "http://a/?q", "http://a/#f", "/etc"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UnverifiableError, match="is not an address"):
        HttpSource(url)


def test_a_token_in_the_address_goes_to_the_server() -> None:
    served = Served(Mirror(leaves(3)))
    with serving(served) as url, closing(HttpSource(url.replace("//", "//reader:a%2Fb@"))) as source:
        assert verify_tiles(source, TRUSTED).entries == 3
    assert {token for _, token in served.requests} == {"Basic cmVhZGVyOmEvYg=="}


def test_a_password_in_an_address_is_not_told() -> None:
    source = HttpSource("http://user:secret@127.0.0.1:9/log", sleep=lambda _: None)
    with pytest.raises(UnverifiableError) as caught:
        source.read("checkpoint")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("endless", ["status", "headers", "body", "continue"])
def test_an_answer_without_end_ends(endless: str) -> None:
    """Every byte came within the longest silence, so a verifier could be kept waiting for ever."""
    first, more = {
        "status": (b"HTTP/1.1 20", b"0"),
        "headers": (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        "body": (b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n", b"z"),
        "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    }[endless]

    class Dripping(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                self.request.sendall(first)
                while not ended.wait(0.02):
                    self.request.sendall(more)
            except OSError:
                return

    ended = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripping) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            with (
                closing(HttpSource(url, answer_seconds=0.3)) as source,
                pytest.raises(UnverifiableError, match="no whole answer"),
            ):
                source.read("checkpoint")
        finally:
            ended.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_what_is_no_file_is_not_there_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A pipe in a mirror that somebody sent held the verifier up for ever."""
    make(tmp_path / "checkpoint")
    assert DirectorySource(tmp_path).read("checkpoint") is None
