"""Between machines a certificate is the name: strangers, wrong names and claimed names get nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from kala import errors
from services.common.channel import open_channel
from services.common.interceptors import CallPolicy
from services.common.peers import Peer, peer_of
from services.common.status import translated
from services.common.tls import TlsFiles
from tests.fakes.certificates import TestAuthority
from tests.fakes.echo import CALLER, EchoClient, EchoService, served_echo


def tls_settings(files: TlsFiles) -> dict[str, Any]:
    return {
        "tls_cert_file": files.cert_file,
        "tls_key_file": files.key_file,
        "tls_ca_file": files.ca_file,
        "address": "127.0.0.1:0",
    }


@pytest.fixture
def server_files(authority: TestAuthority) -> TlsFiles:
    return authority.issue("ethics", dns_names=("ethics",))


async def say(
    server_files: TlsFiles, client_files: TlsFiles | None, *, claim: str = CALLER, **options: Any
) -> str:
    """Call an echo over TLS and give back the name that the server saw."""
    service = EchoService(answers={"who": lambda context: peer_of(context).name})
    async with (
        served_echo(service, **tls_settings(server_files), **options) as server,
        open_channel(server.address, peer_name=claim, tls=client_files, server_name="ethics") as channel,
    ):
        with translated():
            return await EchoClient(channel).say("who", timeout=5)


async def test_a_caller_has_the_first_dns_name_of_its_certificate(
    authority: TestAuthority, server_files: TlsFiles
) -> None:
    files = authority.issue("something else", dns_names=(CALLER, "gateway.kala.svc"))
    assert await say(server_files, files, claim="trainer") == CALLER


async def test_a_caller_without_a_dns_name_has_its_common_name(
    authority: TestAuthority, server_files: TlsFiles
) -> None:
    assert await say(server_files, authority.issue(CALLER)) == CALLER


async def test_a_certificate_of_another_authority_opens_no_connection(
    authority: TestAuthority, stranger_authority: TestAuthority, server_files: TlsFiles
) -> None:
    with pytest.raises(errors.UnavailableError):
        await say(server_files, stranger_authority.issue(CALLER, dns_names=(CALLER,), trusting=authority))


async def test_a_client_refuses_a_server_of_another_authority(
    authority: TestAuthority, stranger_authority: TestAuthority
) -> None:
    imposter = stranger_authority.issue("ethics", dns_names=("ethics",), trusting=authority)
    with pytest.raises(errors.UnavailableError):
        await say(imposter, authority.issue(CALLER))


async def test_a_client_refuses_a_server_with_another_name(authority: TestAuthority) -> None:
    with pytest.raises(errors.UnavailableError):
        await say(authority.issue("tools", dns_names=("tools",)), authority.issue(CALLER))


async def test_a_plain_connection_is_refused(server_files: TlsFiles) -> None:
    with pytest.raises(errors.UnavailableError):
        await say(server_files, None)


async def test_a_client_without_a_certificate_is_refused(server_files: TlsFiles) -> None:
    credentials = grpc.ssl_channel_credentials(server_files.ca_file.read_bytes())
    options = (("grpc.ssl_target_name_override", "ethics"),)
    async with (
        served_echo(EchoService(), **tls_settings(server_files)) as server,
        grpc.aio.secure_channel(server.address, credentials, options=options) as channel,
    ):
        with pytest.raises(errors.UnavailableError), translated():
            await EchoClient(channel).say("x", timeout=5)


async def test_a_known_part_that_is_not_on_the_list_is_denied(
    authority: TestAuthority, server_files: TlsFiles
) -> None:
    denials: list[str] = []

    async def on_denied(_method: str, peer: Peer | None, _error: errors.KalaError) -> None:
        denials.append(str(peer))

    with pytest.raises(errors.PermissionDeniedError):
        await say(server_files, authority.issue("trainer"), policy=CallPolicy(on_denied=on_denied))
    assert denials == ["trainer"]


async def test_a_certificate_cannot_name_itself_local(
    authority: TestAuthority, server_files: TlsFiles
) -> None:
    with pytest.raises(errors.UnauthenticatedError):
        await say(server_files, authority.issue("local:gateway"))


async def test_a_missing_key_file_is_named(server_files: TlsFiles) -> None:
    files = {**tls_settings(server_files), "tls_key_file": server_files.key_file.with_name("gone.key")}
    with pytest.raises(errors.FailedPreconditionError, match=r"gone\.key"):
        async with served_echo(EchoService(), **files):
            pass


def test_a_part_knows_the_name_that_its_peers_see(authority: TestAuthority, tmp_path: Path) -> None:
    assert authority.issue("common", dns_names=("ethics", "ethics.kala.svc")).own_name() == "ethics"
    assert authority.issue("common").own_name() == "common"
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    files = TlsFiles(broken, broken, broken)
    with pytest.raises(errors.FailedPreconditionError, match="no certificate with a name"):
        files.own_name()
