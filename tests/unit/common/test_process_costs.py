from __future__ import annotations

import os
import subprocess
import sys

import pytest

import services

PROGRAM = "import {package}; import os, grpc; print(os.environ['GRPC_EXPERIMENTS'])"


def output_of(program: str, **environment: str) -> tuple[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("package", ["services.common.server", "services.common.channel", "gateway"])
def test_grpc_knows_how_it_is_told_to_poll(package: str) -> None:
    # An experiment that a later gRPC no longer has is a line on stderr, and the bench is the slower for it.
    assert output_of(PROGRAM.format(package=package)) == (services.GRPC_EXPERIMENTS, "")


def test_an_operator_may_tell_grpc_otherwise() -> None:
    assert output_of(PROGRAM.format(package="services"), GRPC_EXPERIMENTS="event_engine_client") == (
        "event_engine_client",
        "",
    )


@pytest.mark.parametrize("package", ["services", "gateway"])
def test_grpc_is_not_imported_before_it_is_told(package: str) -> None:
    program = f"import {package}, sys; print('grpc' in sys.modules)"
    assert output_of(program) == ("False", "")


@pytest.mark.parametrize(
    "package", ["gateway", *(f"services.{name}" for name in ("ethics", "audit", "inference"))]
)
def test_no_process_loads_what_only_pretty_tracebacks_need(package: str) -> None:
    program = (
        f"import {package}.__main__, sys; print('rich' in sys.modules); import rich; print(rich.__name__)"
    )
    assert output_of(program) == ("False\nrich", "")


def test_the_gateway_loads_what_tokens_need_only_where_a_provider_is_trusted() -> None:
    program = (
        "import gateway.__main__, sys; print([name for name in ('joserfc', 'httpx') if name in sys.modules])"
    )
    assert output_of(program) == ("[]", "")
