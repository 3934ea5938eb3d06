"""The job's report as one HTML page that needs nothing else: pictures inside, no script, no address of anybody."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from google.protobuf import json_format

from kala.common.v1.gate_pb2 import GateResult
from kala.trainer.v1 import job_pb2
from services.trainer.reports.words import (
    base_reading,
    measure_of,
    outcome_of,
    reading,
    requirement_of,
)

_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}"
    "h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}"
    "td.number{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%;height:auto}"
    ".passed{color:#2d7d46}.failed{color:#b3261e;font-weight:600}pre{white-space:pre-wrap;background:#f6f6f6;padding:.8rem}"
    "@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}td,th{border-color:#333}"
    "pre{background:#222}img{background:#fff}}"
)
# Scripts, addresses and forms have no place in a report, whatever a dataset's name may hold.
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    *,
    name: str,
    spec: job_pb2.TrainingSpec,
    result: Mapping[str, Any],
    loss_png: bytes,
    incidents: Sequence[job_pb2.IncidentEvent],
    gate: GateResult | None,
    gate_png: bytes,
    card: str,
) -> str:
    """Returns the page; everything that comes from outside is escaped."""
    title = f"{spec.adapter or 'Training'} on {spec.base.name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(name)}{'. ' + escape(spec.summary) if spec.summary else ''}</p>",
        _section("What came out", _table(_outcome_rows(result))),
        _section("Loss", _image(loss_png, "Loss by step")),
        _gate_section(gate, gate_png),
        _section("What was made of the data", f"<pre>{escape(card)}</pre>" if card else ""),
        _section("What went wrong on the way", _list(incidents)),
        _section("What was asked for", _table(_spec_rows(spec))),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _outcome_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    metrics = result.get("metrics", {})
    numbers = [(key.replace("_", " "), f"{value:.6g}") for key, value in metrics.items()]
    plain = ("steps", "tokens", "resumes", "workers", "precision", "hardware", "seed")
    told = [(key, str(result[key])) for key in plain if result.get(key) not in {None, ""}]
    peak = result.get("peak_memory_bytes")
    memory = [("most memory", f"{int(peak) / 2**20:,.0f} MiB")] if peak else []
    return [*told, *numbers, *memory, ("software", ", ".join(map(str, result.get("software", []))))]


def _spec_rows(spec: job_pb2.TrainingSpec) -> list[tuple[str, str]]:
    plain: dict[str, Any] = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    return list(_flat("", plain))


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, str]]:  # Any: JSON
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{prefix}[{number}]", item)
    else:
        yield prefix, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _gate_section(gate: GateResult | None, png: bytes) -> str:
    if gate is None:
        return ""
    rows = [
        f"<tr><td>{escape(measure_of(metric))}</td>"
        f'<td class="number">{reading(metric):.4g}{f" of {metric.total}" if metric.total else ""}</td>'
        f'<td class="number">{_base(base_reading(metric))}</td><td>{escape(requirement_of(metric))}</td>'
        f'<td class="{"passed" if metric.passed else "failed"}">{"passed" if metric.passed else "failed"}</td></tr>'
        for metric in gate.metrics
    ]
    head = "<tr><th>measure</th><th>adapter</th><th>base</th><th>asked</th><th>result</th></tr>"
    why = f"<p>{escape(gate.error)}</p>" if gate.error else ""
    body = f"{why}{_image(png, 'Measures of the gate')}<table>{head}{''.join(rows)}</table>"
    return _section(f"Gate {gate.profile}: {outcome_of(gate.outcome)}", body)


def _base(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _list(incidents: Sequence[job_pb2.IncidentEvent]) -> str:
    items = "".join(f"<li>{escape(each.kind)}: {escape(each.message)}</li>" for each in incidents)
    return f"<ul>{items}</ul>" if items else ""


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows if value)
    return f"<table>{body}</table>" if body else ""


def _image(png: bytes, words: str) -> str:
    if not png:
        return ""
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""
