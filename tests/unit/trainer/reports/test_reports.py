"""What people read of a job: complete, self-contained, and never more than was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kala.common.v1 import gate_pb2
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import DataLossError
from kala.trainer.v1 import job_pb2, registry_pb2
from services.trainer.reports.files import write_reports
from services.trainer.reports.plots import gate_plot, loss_plot
from services.trainer.reports.redraw import redraw
from services.trainer.reports.words import bound_of, reading
from services.trainer.work.events import EventWriter

PNG = b"\x89PNG\r\n"


def metric(**changes: object) -> gate_pb2.GateMetric:
    given = {
        "metric": "exact_match", "suite": "template_task", "hits": 390, "total": 400, "passed": True,
        "comparison": gate_pb2.GATE_COMPARISON_VALUE_AT_LEAST, "threshold_micros": 900_000,
    }  # fmt: skip
    return gate_pb2.GateMetric(**given | changes)


def gate(*metrics: gate_pb2.GateMetric) -> gate_pb2.GateResult:
    return gate_pb2.GateResult(
        profile="embedded", outcome=gate_pb2.GATE_OUTCOME_PASSED, metrics=metrics or [metric()]
    )


def spec(**changes: object) -> job_pb2.TrainingSpec:
    base = ContentReference(name="kala-embedded", sha256=bytes(32), bytes=1)
    return job_pb2.TrainingSpec(**{"adapter": "adapters/demo", "base": base} | changes)


def folder(root: Path) -> Path:
    (root / "reports").mkdir()
    lines = [{"step": step, "loss": 5.0 / step, "learning_rate": 0.01 / step} for step in range(1, 30)]
    lines.append({"step": 29, "validation_loss": 0.3})
    (root / "reports/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "result.json").write_text(
        json.dumps(
            {"steps": 29, "tokens": 5000, "metrics": {"train_loss": 0.172}, "software": ["torch 2.13.0"]}
        )
    )
    EventWriter(root).write(job_pb2.IncidentEvent(kind="WORKER_LOST", message="killed by signal 9"))
    return root


def test_the_page_holds_curve_numbers_incidents_and_what_was_asked(tmp_path: Path) -> None:
    write_reports(folder(tmp_path), "trainingJobs/1", spec(summary="Learns laws."))
    text = (tmp_path / "reports/report.html").read_text()
    for expected in (
        "adapters/demo on kala-embedded",
        "Learns laws.",
        "0.172",
        "WORKER_LOST: killed by signal 9",
        "torch 2.13.0",
    ):
        assert expected in text
    assert text.count("data:image/png;base64,") == 1
    assert (tmp_path / "reports/loss.png").read_bytes().startswith(PNG)
    assert not (tmp_path / "reports/gates.png").exists()


def test_a_gate_is_drawn_and_told_with_every_measure(tmp_path: Path) -> None:
    failed = metric(
        metric="false_refusal", suite="embedded_benign", hits=30, total=300, base_hits=3, base_total=300, passed=False,
        comparison=gate_pb2.GATE_COMPARISON_RISE_AT_MOST, threshold_micros=20_000,
    )  # fmt: skip
    result = gate(metric(), failed)
    result.outcome = gate_pb2.GATE_OUTCOME_FAILED
    (folder(tmp_path) / "reports/gate.binpb").write_bytes(result.SerializeToString())
    write_reports(tmp_path, "trainingJobs/1", spec())
    text = (tmp_path / "reports/report.html").read_text()
    assert "Gate embedded: failed" in text
    assert "above the base&#x27;s by at most 0.02" in text
    assert text.count("data:image/png;base64,") == 2
    assert (tmp_path / "reports/gates.png").read_bytes().startswith(PNG)
    assert reading(failed) == pytest.approx(0.1)
    assert bound_of(failed) == pytest.approx(0.03)


def test_nothing_from_outside_becomes_markup_and_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    write_reports(
        folder(tmp_path), "<script>alert(1)</script>", spec(summary='"><img src=x onerror=alert(2)>')
    )
    text = (tmp_path / "reports/report.html").read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert re.findall(r"https?://", text) == []
    assert "default-src 'none'" in text


def test_a_job_that_logged_nothing_has_a_page_without_pictures(tmp_path: Path) -> None:
    write_reports(tmp_path, "trainingJobs/1", spec())
    assert "data:image" not in (tmp_path / "reports/report.html").read_text()
    assert loss_plot([]) == b""
    assert gate_plot(gate_pb2.GateResult()) == b""


def test_a_folder_that_is_no_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataLossError, match="holds no job"):
        write_reports(tmp_path, "trainingJobs/1")


def test_the_same_numbers_give_the_same_picture() -> None:
    rows = [{"step": float(step), "loss": 1.0 / step} for step in range(1, 9)]
    assert loss_plot(rows) == loss_plot(rows)


async def test_a_report_that_cannot_be_drawn_breaks_nothing(tmp_path: Path) -> None:
    await redraw(tmp_path, "trainingJobs/1", registry_pb2.Evaluation(result=gate()))
    assert (tmp_path / "reports/gate.binpb").exists()
    assert not (tmp_path / "reports/report.html").exists()
