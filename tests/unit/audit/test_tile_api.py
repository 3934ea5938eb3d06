"""The log over HTTP: who gets a tile, what it holds, and that nothing is read that is not recorded."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kala.audit.checkpoint import open_checkpoint
from kala.audit.merkle import leaf_hash
from kala.audit.tile_paths import TilePath, bundles_of, tiles_of, unbundle
from kala.errors import FailedPreconditionError, UnavailableError
from services.audit.publishing.published import NoCosignatures, PublishedLog
from services.audit.publishing.tile_api import TileApi, load_token
from tests.fakes.audit_log import LogFile, fill, open_log, signer

TOKEN = "t" * 43
SIZE = 520


class Answer:
    """What a client got."""

    def __init__(self, status: str, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers, self.body = int(status[:3]), dict(headers), body


def ask(api: TileApi, path: str, *, method: str = "GET", **headers: str) -> Answer:
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "REMOTE_ADDR": "127.0.0.1"}
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    got: list[tuple[str, list[tuple[str, str]]]] = []
    body = b"".join(api(environ, lambda status, lines, *_: got.append((status, lines))))  # type: ignore[arg-type,return-value]
    return Answer(*got[0], body)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogFile]:
    path = tmp_path_factory.mktemp("tiles") / "audit.db"
    fill(path, [200, 100, 219, 1])
    with open_log(path) as log:
        yield log


@pytest.fixture
def readers() -> list[str]:
    return []


@pytest.fixture
def api(log: LogFile, readers: list[str]) -> TileApi:
    published = PublishedLog(log.reader, NoCosignatures())
    return TileApi(published, token=TOKEN, note_reader=readers.append)


def with_token(api: TileApi, path: str, **headers: str) -> Answer:
    return ask(api, path, authorization=f"Bearer {TOKEN}", **headers)


def test_everybody_gets_the_signed_checkpoint_and_must_ask_for_it_again(api: TileApi) -> None:
    answer = ask(api, "/checkpoint")
    assert open_checkpoint(answer.body.decode(), [signer().verifier]).size == SIZE
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"


def test_the_tiles_and_bundles_lead_to_the_signed_root(api: TileApi) -> None:
    root = open_checkpoint(ask(api, "/checkpoint").body.decode(), [signer().verifier]).root
    tiles = {str(path): with_token(api, f"/{path}").body for path in tiles_of(SIZE)}
    leaves = [leaf for path in bundles_of(SIZE) for leaf in unbundle(with_token(api, f"/{path}").body)]
    hashes = b"".join(map(leaf_hash, leaves))
    assert hashes == b"".join(data for path, data in tiles.items() if path.startswith("tile/0/"))
    assert len(leaves) == SIZE
    assert [(path, len(data) // 32) for path, data in tiles.items()] == [
        ("tile/0/000", 256),
        ("tile/0/001", 256),
        ("tile/0/002.p/8", 8),
        ("tile/1/000.p/2", 2),
    ]
    from kala.audit.merkle import root_of

    assert root_of(map(leaf_hash, leaves)) == root


@pytest.mark.parametrize("path", ["tile/0/000.p/200", "tile/entries/001.p/44", "tile/1/000.p/1"])
def test_a_partial_tile_of_an_earlier_checkpoint_is_the_beginning_of_the_full_one(
    api: TileApi, path: str
) -> None:
    tile = TilePath.parse(path)
    now = TilePath(tile.level, tile.number, 2 if tile.level else 256)
    part, whole = with_token(api, f"/{tile}"), with_token(api, f"/{now}")
    assert part.status == whole.status == 200
    assert whole.body.startswith(part.body)
    assert len(part.body) < len(whole.body)


@pytest.mark.parametrize(
    "path",
    [
        "/tile/0/003",
        "/tile/0/002",
        "/tile/0/002.p/9",
        "/tile/2/000.p/1",
        "/tile/entries/002.p/9",
        "/tile/0/x000/001",
        "/tile/0/0",
        "/tile",
        "/tile/../checkpoint",
        "/checkpoint/",
        "/tile/0/999999999999999999",
        "/tile/63/" + "x999/" * 6 + "999",
    ],
)
def test_what_the_log_does_not_have_is_not_found(api: TileApi, path: str) -> None:
    assert with_token(api, path).status == 404


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Token {TOKEN}",
        "Basic !!!",
        "Basic " + base64.b64encode(b"reader:wrong").decode(),
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
        "Bearer \u00e9",
    ],
)
@pytest.mark.parametrize("path", ["/tile/0/000", "/tile/entries/000", "/tile/nonsense"])
def test_without_the_token_there_is_no_tile(
    api: TileApi, readers: list[str], path: str, authorization: str
) -> None:
    answer = ask(api, path, authorization=authorization)
    assert answer.status == 401
    assert "WWW-Authenticate" in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"
    assert readers == []


def test_a_log_without_a_token_serves_its_checkpoint_and_no_tile(log: LogFile) -> None:
    api = TileApi(PublishedLog(log.reader, NoCosignatures()), token=None, note_reader=lambda _: None)
    refused = with_token(api, "/tile/0/000")
    assert refused.status == 403
    assert b"KALA_AUDIT_TILE_TOKEN_FILE" in refused.body
    assert ask(api, "/checkpoint").status == 200


def test_a_client_that_takes_its_password_from_the_url_gets_tiles(api: TileApi) -> None:
    basic = base64.b64encode(f"reader:{TOKEN}".encode()).decode()
    answer = ask(api, "/tile/0/000", authorization=f"Basic {basic}")
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert answer.headers["Content-Type"] == "application/octet-stream"


def test_reading_entries_is_recorded_and_reading_hashes_is_not(api: TileApi, readers: list[str]) -> None:
    with_token(api, "/tile/0/000")
    ask(api, "/checkpoint")
    assert readers == []
    with_token(api, "/tile/entries/000")
    assert readers == ["127.0.0.1"]


def test_entries_are_not_given_when_the_reading_cannot_be_recorded(log: LogFile) -> None:
    def full(_reader: str) -> None:
        raise UnavailableError("the log is full", reason="AUDIT_UNAVAILABLE")

    api = TileApi(PublishedLog(log.reader, NoCosignatures()), token=TOKEN, note_reader=full)
    answer = with_token(api, "/tile/entries/000")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert with_token(api, "/tile/0/000").status == 200


def test_a_bundle_is_compressed_for_who_asks(api: TileApi) -> None:
    plain, packed = (
        with_token(api, "/tile/entries/000"),
        with_token(api, "/tile/entries/000", accept_encoding="gzip, br"),
    )
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) / 2


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [
        ("deflate,GZIP;q=0.5", True),
        ("gzip", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, br", False),
        ("br", False),
    ],
)
def test_a_bundle_is_not_compressed_for_who_refuses_that(
    api: TileApi, accepted: str, is_packed: bool
) -> None:
    answer = with_token(api, "/tile/entries/000", accept_encoding=accepted)
    assert ("Content-Encoding" in answer.headers) == is_packed


def test_head_gives_the_headers_and_post_is_not_allowed(api: TileApi) -> None:
    head = ask(api, "/tile/0/000", method="HEAD", authorization=f"Bearer {TOKEN}")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "8192")
    assert ask(api, "/checkpoint", method="POST").status == 405


class UncosignedYet(NoCosignatures):
    """A policy that no checkpoint meets."""

    def publishable(self) -> int | None:
        return -1


def test_no_checkpoint_is_published_before_the_policy_is_met(log: LogFile) -> None:
    api = TileApi(PublishedLog(log.reader, UncosignedYet()), token=TOKEN, note_reader=lambda _: None)
    answer = ask(api, "/checkpoint")
    assert answer.status == 503
    assert b"cosignatures" in answer.body


@pytest.mark.parametrize("content", ["", "short", "a" * 42, "a b" * 30, "\u00e9" * 50])
def test_a_file_that_holds_no_token_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(content)
    with pytest.raises(FailedPreconditionError, match="holds no token"):
        load_token(file)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    with pytest.raises(FailedPreconditionError, match="chmod 600"):
        load_token(file)
    file.chmod(0o600)
    assert load_token(file) == TOKEN
