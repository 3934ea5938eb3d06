"""Secrets: real-looking ones are found by form or by name, placeholders are not, and no finding holds one.

Keys are put together here, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import base64
import json

import pytest

from services.tools.code.engines.secrets.engine import SecretsEngine
from services.tools.code.model import EngineName, ScanOptions, ScanReport, SourceFile
from services.tools.code.validate import validate

ENGINES = (SecretsEngine(),)
RANDOM = "9f8Xk2LmQp4vZr7TsW1cB6nH3jD5gY0a"
KEY_BODY = base64.b64encode(bytes(range(96))).decode()


def token() -> str:
    parts = ({"alg": "HS256"}, {"sub": "1"})
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, RANDOM])


def scan(text: str, path: str = "a.js") -> ScanReport:
    return validate([SourceFile(path, text)], ScanOptions(engines=frozenset({EngineName.SECRETS})), ENGINES)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("key = '" + "AKIA" + "Q3EGRIVN2WXKT7LM" + "'", "provider_key"),
        ("send('" + "SG." + RANDOM[:22] + "." + (RANDOM * 2)[:43] + "')", "provider_key"),
        ("stripe('" + "sk_live_" + RANDOM[:24] + "')", "provider_key"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----\n" + KEY_BODY + "\n", "private_key"),
        ("db = 'postgres://app:" + "s3cr3tPw9@db.internal/app'", "connection_password"),
        ("c = 'Server=db;User Id=sa;" + "Password=Gr33nTea!;'", "connection_password"),
        ("const jwtSecret = '" + RANDOM + "';", "random_secret"),
        ('{"client_secret": "' + RANDOM + '"}', "random_secret"),
        ("headers.set('X-Api-Key', '" + RANDOM + "')", "random_secret"),
        ("self.db_password = '" + "hunter2x" + "'", "password"),
        ("fetch(u, {token: t('" + token() + "')})", "signed_token"),
    ],
)
def test_a_secret_is_found_and_not_told(text: str, rule: str) -> None:
    report = scan(text)

    assert [finding.rule for finding in report.findings] == [f"kala.secrets.{rule}"]
    secret = text[report.findings[0].span.start_byte : report.findings[0].span.end_byte]
    assert len(secret) >= 8
    assert secret not in repr(report)


def test_shells_and_plain_files_need_no_quotes() -> None:
    assert scan("export DB_PASSWORD=" + "hunter2x", "deploy.sh").findings
    assert scan("api_key: " + RANDOM, "settings.yaml").findings


@pytest.mark.parametrize(
    "text",
    [
        "password = 'password'",
        "api_key = 'YOUR_API_KEY_123456'",
        "secret = '550e8400-e29b-41d4-a716-446655440000'",
        "sha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'",
        "password = os.environ['DB_PASSWORD']",
        "url = 'postgres://user:password@localhost/db'",
        "url = f'postgres://{user}:{password}@host'",
        "url = `postgres://app:${process.env.PASSWORD}@host`",
        "key = 'AKIAIOSFODNN7EXAMPLE'",
        "csrf_token = '" + RANDOM + "'",
        "password_hash = '$2b$12$" + RANDOM + "'",
        "token_url = 'https://login.internal/oauth2/token'",
        "if (password === '" + "hunter2x" + "') {}",
        "t = '" + "ghp_" + RANDOM + "abcd'",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert scan(text).findings == ()


def test_a_token_counts_only_with_its_own_checksum() -> None:
    # The example that was published with the format.
    real = "ghp_" + "zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ" + "0mLq17"

    assert [finding.rule for finding in scan(f"t = '{real}'").findings] == ["kala.secrets.provider_key"]
    assert scan(f"t = '{real[:-1]}8'").findings == ()


def test_more_secrets_than_anybody_reads_are_cut_and_said() -> None:
    report = scan(f"api_key = '{RANDOM}'\n" * 1_500)

    assert len(report.findings) == 1_000
    assert "more than 1000 secrets" in report.problems[0].message
