"""`make bench`: start-up, added latency and time to first token, beside LiteLLM proxy; what the guarded path, the router, batching, a judgement, the log and training cost.

`--only suite`, `gateway`, `inference`, `pythia`, `ethics`, `sandbox`, `code`, `audit` or `trainer` runs one of the nine. Writes build/bench/report.md and report.json; the table in docs/performance.md is a copy of one such run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import audit, code, ethics, gateway, inference, pythia, sandbox, trainer, trainer_exports
from bench.measure import NUMBER, Arm, KeepAliveClient, interleaved
from bench.servers import ROOT, Peer, Suite, litellm, suite
from bench.upstream import static_model_servers

QUESTION: Final = [
    {"role": "user", "content": f"Say something about fox {NUMBER.decode()} and a dog, please."}
]


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report: its lines in Markdown, and its figures."""

    report: Sequence[str]
    figures: Mapping[str, object]


def body(model: str, *, stream: bool) -> bytes:
    """The one request that every arm sends."""
    return json.dumps({"model": model, "messages": QUESTION, "stream": stream}).encode()


def chat_client(base: str, model: str, *, key: str = "none", stream: bool = False) -> KeepAliveClient:
    """A client of one arm."""
    return KeepAliveClient(
        f"{base}/v1/chat/completions", body(model, stream=stream), {"authorization": f"Bearer {key}"}
    )


def compare(
    running: Suite, peer: Peer | None, whole: str, streamed: str, *, rounds: int, requests: int
) -> dict[str, list[Arm]]:
    """Latency of whole answers and time to the first token, every arm in every round."""
    answers: dict[str, Callable[[], float]] = {
        "direct": chat_client(whole, "bench").whole,
        "kala": chat_client(running.url, "llamacpp/bench", key=running.key).whole,
    }
    streams: dict[str, Callable[[], float]] = {
        "direct": chat_client(streamed, "bench", stream=True).first_token,
        "kala": chat_client(running.url, "mlx/bench", key=running.key, stream=True).first_token,
    }
    if peer:
        answers["litellm"] = chat_client(peer.url, "whole", key=peer.key).whole
        streams["litellm"] = chat_client(peer.url, "stream", key=peer.key, stream=True).first_token
    return {
        "answer": interleaved(answers, rounds=rounds, requests=requests),
        "first token": interleaved(streams, rounds=rounds, requests=requests),
    }


def table(results: dict[str, list[Arm]]) -> list[str]:
    """Markdown rows: p50, what it adds to direct, and the ratio of that to LiteLLM's."""
    lines = [
        "| measure | arm | p50 ms | p99 ms | added p50 ms | of LiteLLM's added |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for measure, arms in results.items():
        by_name = {arm.name: arm for arm in arms}
        direct, peer = by_name["direct"].p50_ms, by_name.get("litellm")
        for arm in arms:
            added = arm.p50_ms - direct
            ratio = f"{added / (peer.p50_ms - direct):.2f}" if peer and arm.name != "direct" else "–"
            lines.append(
                f"| {measure} | {arm.name} | {arm.p50_ms:.2f} | {arm.p99_ms:.2f} | {added:.2f} | {ratio} |"
            )
    return lines


def startup(folder: Path, whole: str) -> dict[str, float]:
    """Seconds from the command to a ready suite, with an external backend and with the embedded model."""
    seconds = {}
    for name, environment in (
        ("external backend", {"KALA_INFERENCE_LLAMACPP_URL": whole, "KALA_INFERENCE_DISCOVER": "false"}),
        ("embedded model", {"KALA_INFERENCE_DISCOVER": "false"}),
    ):
        with suite(folder / name.replace(" ", "-"), environment) as running:
            first = chat_client(running.url, "auto", key=running.key).whole()
            seconds[name] = running.ready_seconds
            seconds[f"{name}, first answer"] = running.ready_seconds + first
    return seconds


def measure_suite(folder: Path, rounds: int, requests: int, *, starts: bool) -> Section:
    """The suite beside its peer."""
    with static_model_servers(folder / "nginx") as (whole, streamed):
        started = startup(folder, whole) if starts else {}
        environment = {
            "KALA_INFERENCE_LLAMACPP_URL": whole,
            "KALA_INFERENCE_MLX_URL": streamed,
            "KALA_INFERENCE_DISCOVER": "false",
        }
        with suite(folder / "state", environment) as running, litellm(folder, whole, streamed) as peer:
            results = compare(running, peer, whole, streamed, rounds=rounds, requests=requests)
    figures = {
        name: [{"arm": arm.name, "p50_ms": arm.p50_ms, "p99_ms": arm.p99_ms} for arm in arms]
        for name, arms in results.items()
    }
    report = [
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}.",
        "",
        *table(results),
        "",
        *(f"- ready with {name}: {value:.1f} s" for name, value in started.items()),
    ]
    return Section(report, {"startup_seconds": started, **figures})


def measure_gateway(folder: Path, rounds: int, requests: int) -> Section:
    """The whole guarded path beside its peers."""
    figures = gateway.measure(folder, gateway.Sizes(rounds, requests))
    return Section(gateway.lines(figures), {"gateway": gateway.document(figures)})


def measure_ethics(rounds: int, requests: int) -> Section:
    """What a judgement costs."""
    figures = ethics.measure(rounds, requests)
    return Section(ethics.lines(figures), {"ethics": ethics.document(figures)})


def measure_inference(folder: Path, rounds: int, requests: int) -> Section:
    """What the router costs, beside the upstream and its peers."""
    figures = inference.measure(folder, rounds, requests)
    return Section(inference.lines(figures), {"inference": inference.document(figures)})


def measure_sandbox(rounds: int, requests: int) -> Section:
    """What isolation costs."""
    figures = sandbox.measure(rounds, requests)
    return Section(sandbox.lines(figures), {"sandbox": sandbox.document(figures)})


def measure_code(rounds: int, requests: int) -> Section:
    """What a scan costs, and how samples are judged."""
    figures = code.measure(rounds, requests)
    return Section(code.lines(figures), {"code": code.document(figures)})


def measure_pythia() -> Section:
    """What batching in the model in process gives."""
    figures = pythia.measure()
    return Section(pythia.lines(figures), {"pythia": pythia.document(figures)})


def measure_audit() -> Section:
    """What the log costs, and what a large one does."""
    figures = audit.measure()
    return Section(audit.lines(figures), {"audit": audit.document(figures)})


def measure_trainer() -> Section:
    """What training costs, what a kill loses, and whether exports say what PEFT says."""
    figures, exports = trainer.measure(), trainer_exports.measure()
    return Section(
        [*trainer.lines(figures), "", *trainer_exports.lines(exports)],
        {"trainer": trainer.document(figures), "trainer_exports": trainer_exports.document(exports)},
    )


def write(sections: Sequence[Section]) -> None:
    """Write the report and print it."""
    report = "\n\n".join("\n".join(section.report) for section in sections)
    figures: dict[str, object] = {}
    for section in sections:
        figures |= section.figures
    out = ROOT / "build" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(report + "\n")
    (out / "report.json").write_text(json.dumps(figures, indent=2))
    print(report)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        choices=("suite", "gateway", "inference", "pythia", "ethics", "sandbox", "code", "audit", "trainer"),
        help="measure this part only",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=100, help="per arm and round")
    parser.add_argument("--no-startup", action="store_true", help="skip the suite's start-up times")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kala-bench-"))
    sections: list[Section] = []
    try:
        if options.only in {None, "suite"}:
            sections.append(
                measure_suite(folder, options.rounds, options.requests, starts=not options.no_startup)
            )
        if options.only in {None, "gateway"}:
            sections.append(measure_gateway(folder / "gateway", options.rounds, options.requests))
        if options.only in {None, "inference"}:
            sections.append(measure_inference(folder / "inference", options.rounds, options.requests))
        if options.only in {None, "pythia"}:
            sections.append(measure_pythia())
        if options.only in {None, "ethics"}:
            sections.append(measure_ethics(options.rounds, options.requests))
        if options.only in {None, "sandbox"}:
            sections.append(measure_sandbox(options.rounds, options.requests))
        if options.only in {None, "code"}:
            sections.append(measure_code(options.rounds, options.requests))
        if options.only in {None, "audit"}:
            sections.append(measure_audit())
        if options.only in {None, "trainer"}:
            sections.append(measure_trainer())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write(sections)


if __name__ == "__main__":
    main()
