"""A key's limits and mutable settings at a running suite: real ethics, a real log, real inference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.suites import Suite

SETTINGS = "/kala/v1/gateway/settings"
ROLES = f"{SETTINGS}/inference.roles"


@pytest.fixture
def http(suite: Suite) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {suite.key}"}
    with httpx.Client(base_url=suite.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def ask(http: httpx.Client, **headers: str) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    return http.post("/v1/chat/completions", json=body, headers=headers)


def test_a_budget_of_ten_answers_ten_of_forty_racing_requests_and_counts_them(http: httpx.Client) -> None:
    limits = {"budgets": [{"unit": "BUDGET_UNIT_REQUESTS", "period": "BUDGET_PERIOD_TOTAL", "amount": "10"}]}
    made = http.post(
        "/kala/v1/gateway/keys", json={"display_name": "ten", "roles": ["user"], "limits": limits}
    ).json()
    bearer = {"authorization": f"Bearer {made['secret']}"}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(http, **bearer).status_code, range(40)))
    assert Counter(answers) == {200: 10, 429: 30}
    usage = http.get("/kala/v1/gateway/usage", params={"key": made["key"]["name"]}).json()
    assert sum(int(row["requests"]) for row in usage["rows"]) == 10
    assert sum(int(row["output_tokens"]) for row in usage["rows"]) > 0


def test_a_role_that_is_set_while_the_suite_runs_serves_until_it_is_taken_back(http: httpx.Client) -> None:
    asked = {"x-kala-role": "brief"}
    assert ask(http, **asked).status_code == 400
    made = http.patch(ROLES, json={"value_json": json.dumps({"brief": {"max_tokens": 5}})})
    assert made.status_code == 200, made.text
    assert made.json()["setting"]["source"] == "database"
    assert ask(http, **asked).status_code == 200
    listed = {one["name"]: one["source"] for one in http.get(SETTINGS).json()["settings"]}
    assert listed["settings/inference.lmstudio_url"] == "environment"
    assert http.patch(ROLES, json={"value_json": ""}).status_code == 200
    assert ask(http, **asked).status_code == 400
