"""Callers with tokens of an identity provider: only whom it vouches for, here and now, with the roles that it names."""

from __future__ import annotations

import base64
import hmac
import json
import time
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from pydantic import ValidationError

from gateway.config import GatewaySettings
from gateway.oidc.key_sets import FRESH_SECONDS, KEPT_SECONDS, TRY_EVERY_SECONDS, KeySets, reader_of
from gateway.oidc.trust import where
from kala.errors import InvalidArgumentError, UnavailableError
from tests.fakes.gateway_suite import Suite, running_suite

pytestmark = pytest.mark.asyncio(loop_scope="session")

ISSUER = "https://id.example.org"
AUDIENCE = "kala"
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
with warnings.catch_warnings(action="ignore"):
    SHORT = RSAKey.generate_key(1024)
STRANGER = ECKey.generate_key("P-256", {"kid": "ec"})


def key_set(*keys: RSAKey | ECKey | OKPKey | OctKey, **fields: str) -> bytes:
    return json.dumps({"keys": [{**key.as_dict(private=False), **fields} for key in keys]}).encode()


def token(key: Any = EC, *, alg: str = "ES256", header: dict[str, Any] | None = None, **changes: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 300,
        "team": "blue", "realm": {"roles": ["staff", "unheard-of"]}, **changes,
    }  # fmt: skip
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"alg": alg, "kid": key.kid, **(header or {})}, claims, key, algorithms=[alg])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def oidc(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    directory: Path = tmp_path_factory.mktemp("oidc")
    (directory / "jwks.json").write_bytes(key_set(RSA, EC, ED))
    async with running_suite(
        directory,
        oidc_issuer=ISSUER,
        oidc_audience=AUDIENCE,
        oidc_jwks=str(directory / "jwks.json"),
        oidc_roles_claim="realm.roles",
        oidc_role_map={"staff": "user", "audit": "auditor", "boss": "admin"},
        oidc_tenant_claim="team",
        oidc_limits={"requests_per_minute": 50},
    ) as running:
        yield running


async def ask(suite: Suite, bearer: str, path: str = "/v1/models") -> httpx.Response:
    return await suite.http.get(path, headers={"authorization": f"Bearer {bearer}"})


# EdDSA was renamed by RFC 9864; providers still say it.
@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
@pytest.mark.parametrize(
    ("key", "alg"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")], ids=["RSA", "EC", "Ed"]
)
async def test_whom_the_provider_vouches_for_gets_in(oidc: Suite, key: Any, alg: str) -> None:
    answered = await ask(oidc, token(key, alg=alg))
    assert answered.status_code == 200, answered.text


async def test_a_holder_is_one_caller_of_its_tenant_with_its_limits(oidc: Suite) -> None:
    await oidc.reset()
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}
    for _ in range(2):
        headers = {"authorization": f"Bearer {token()}"}
        answered = await oidc.http.post("/v1/chat/completions", json=body, headers=headers)
        assert answered.status_code == 200, answered.text
        assert answered.headers["x-ratelimit-limit-requests"] == "50"
    first, second = await oidc.leaves(kind="chat.intent")
    assert first["tenant"] == "blue"
    assert first["actor"] == second["actor"]


async def test_nothing_goes_on_for_a_token_after_its_request(oidc: Suite) -> None:
    await oidc.reset()
    headers = {"authorization": f"Bearer {token()}"}
    body = {"input": "Hi", "background": True}
    answered = await oidc.http.post("/v1/responses", json=body, headers=headers)
    assert (answered.status_code, answered.json()["error"]["code"]) == (400, "api_key_needed")


async def test_roles_are_those_of_the_map_and_no_others(oidc: Suite) -> None:
    keys, models = "/kala/v1/gateway/keys", "/v1/models"
    assert (await ask(oidc, token(), keys)).status_code == 403
    assert (await ask(oidc, token(realm={"roles": ["boss"]}), keys)).status_code == 200
    assert (await ask(oidc, token(realm={"roles": "audit boss"}), keys)).status_code == 200
    assert (await ask(oidc, token(realm={"roles": ["admin"]}), keys)).status_code == 403
    nothings: tuple[Any, ...] = (None, [], {"roles": 5}, "staff")
    for nothing in nothings:
        assert (await ask(oidc, token(realm=nothing), models)).status_code == 403


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _unsigned() -> str:
    return f"{_part({'alg': 'none', 'kid': 'ec'})}.{token().split('.')[1]}."


def _confused() -> str:
    signed = f"{_part({'alg': 'HS256', 'kid': 'rsa'})}.{token(RSA, alg='RS256').split('.')[1]}"
    digest = hmac.digest(RSA.as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


NOW = time.time()
BAD: dict[str, Callable[[], str]] = {
    "another issuer": lambda: token(iss="https://evil.example"),
    "another audience": lambda: token(aud=["other"]),
    "no audience": lambda: token(aud=None),
    "no subject": lambda: token(sub=None),
    "an endless subject": lambda: token(sub="a" * 256),
    "no end": lambda: token(exp=None),
    "its end past": lambda: token(exp=int(NOW) - 60),
    "an end of NaN": lambda: token(exp="NaN"),
    "its begin ahead": lambda: token(nbf=int(NOW) + 600),
    "made in the future": lambda: token(iat=int(NOW) + 600),
    "another's signature": lambda: token(STRANGER),
    "an unknown key": lambda: token(ECKey.generate_key("P-256", {"kid": "new"})),
    "a key of another kind": lambda: token(STRANGER, header={"kid": "rsa"}),
    "no signature": _unsigned,
    "the public key as secret": _confused,
    "another type": lambda: token(header={"typ": "logout+jwt"}),
    "a critical extension": lambda: token(header={"crit": ["b64"], "b64": False}),
    "no tenant": lambda: token(team=None),
    "no such tenant": lambda: token(team="Blue Team"),
    "no JWT": lambda: "a.b.c",
    "too long": lambda: token(pad="x" * 9000),
}  # fmt: skip


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
async def test_no_other_token_gets_in(oidc: Suite, make: Callable[[], str]) -> None:
    answered = await ask(oidc, make())
    assert answered.status_code == 401, answered.text
    assert answered.json()["error"]["code"] == "invalid_api_key"
    assert answered.headers["www-authenticate"] == "Bearer"


async def test_a_clock_may_differ_by_five_seconds(oidc: Suite) -> None:
    assert (await ask(oidc, token(exp=int(time.time()) - 2))).status_code == 200
    assert (await ask(oidc, token(nbf=int(time.time()) + 3))).status_code == 200


async def test_keys_serve_beside_tokens_and_alone_where_no_provider_is_trusted(
    oidc: Suite, suite: Suite
) -> None:
    assert (await oidc.get("/v1/models")).status_code == 200
    assert (await ask(suite, token())).status_code == 401


class Provider:
    """Keys that a test changes, and a clock that it moves."""

    def __init__(self, *keys: ECKey) -> None:
        self.data: bytes | Exception = key_set(*keys)
        self.reads = 0
        self.time = 0.0
        self.sets = KeySets(self._read, name="jwks", clock=lambda: self.time)

    async def _read(self) -> bytes:
        self.reads += 1
        if isinstance(self.data, Exception):
            raise self.data
        return self.data

    async def kids(self, wanted: str) -> list[str | None]:
        return [key.kid for key in await self.sets.holding(wanted)]


async def test_a_new_key_is_found_at_once_and_made_up_ones_are_not_asked_for_each_time() -> None:
    provider = Provider(EC)
    assert await provider.kids("ec") == ["ec"]
    new = ECKey.generate_key("P-256", {"kid": "new"})
    provider.data = key_set(new)
    provider.time += TRY_EVERY_SECONDS
    assert await provider.kids("new") == ["new"]
    for number in range(20):
        await provider.kids(f"made-up-{number}")
    assert provider.reads == 2


async def test_withdrawn_keys_end_and_a_provider_that_is_away_counts_for_an_hour() -> None:
    provider = Provider(EC)
    await provider.kids("ec")
    provider.data = OSError("away")
    provider.time = FRESH_SECONDS + 1
    assert await provider.kids("ec") == ["ec"]
    provider.time = KEPT_SECONDS + 1
    with pytest.raises(UnavailableError, match="jwks") as closed:
        await provider.kids("ec")
    assert closed.value.reason == "OIDC_UNAVAILABLE"
    provider.data = key_set(ECKey.generate_key("P-256", {"kid": "next"}))
    provider.time += TRY_EVERY_SECONDS
    assert await provider.kids("ec") == ["next"]


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b'{"keys": []}', key_set(OctKey.generate_key(256), k="c2VjcmV0"), key_set(EC, use="enc"),
     key_set(SHORT), json.dumps({"keys": [{}] * 101}).encode()],
    ids=["nothing", "no keys", "a list", "none", "a secret", "for encryption", "a short key", "too many"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
async def test_keys_that_prove_nothing_let_nobody_in(data: bytes) -> None:
    provider = Provider(EC)
    provider.data = data
    with pytest.raises(UnavailableError):
        await provider.kids("ec")


async def test_a_url_is_read_within_bounds_and_leads_nowhere_else() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/jwks":
                return httpx.Response(200, content=key_set(EC))
            case "/large":
                return httpx.Response(200, content=b" " * 300_000)
            case _:
                return httpx.Response(302, headers={"location": "https://id.example.org/jwks"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        assert await reader_of(f"{ISSUER}/jwks", client)() == key_set(EC)
        for path, problem in (("large", "larger than"), ("moved", "302")):
            with pytest.raises(InvalidArgumentError, match=problem):
                await reader_of(f"{ISSUER}/{path}", client)()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://reader:secret@id.example.org:8443/jwks?key=secret", "https://id.example.org:8443/jwks"),
        ("/etc/kala/jwks.json", "jwks.json"),
    ],
)
async def test_a_stranger_learns_no_secret_of_where_keys_come_from(source: str, shown: str) -> None:
    # Whoever sends any token is told the name, while the keys cannot be read.
    assert where(source) == shown


TRUSTED = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks": "jwks.json"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"oidc_jwks": None}, "together"),
        ({"oidc_audience": None}, "together"),
        ({"oidc_jwks": "http://id.example.org/jwks"}, "https"),
        ({"oidc_algorithms": ("none",)}, "not one of"),
        ({"oidc_algorithms": ("RS256", "HS256")}, "not one of"),
        ({"oidc_algorithms": ()}, "one or more"),
        ({"oidc_role_map": {"staff": "root"}}, "admin"),
        ({"oidc_limits": {"requests_per_minute": 0}}, "greater than 0"),
    ],
)
async def test_a_trust_that_proves_nothing_stops_the_process(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        GatewaySettings(**{**TRUSTED, **changes})
