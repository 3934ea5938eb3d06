"""Whatever a run writes is read as its reader will read it, however it is cut, mixed, escaped or wrapped."""

from __future__ import annotations

import json

import pytest
from google.longrunning import operations_pb2
from hypothesis import given
from hypothesis import strategies as st

from gateway.output_texts import document_text, output_texts, strings_in
from gateway.run_record import exit_of, isolation_text, require_exit, run_ending
from kala.common.v1 import decision_pb2
from kala.errors import UnavailableError
from kala.ethics.v1 import ethics_pb2
from kala.inference.v1 import inference_pb2
from kala.tools.v1 import execution_pb2, tools_pb2
from kala.trainer.v1 import job_pb2

STREAMS = (execution_pb2.OUTPUT_STREAM_STDOUT, execution_pb2.OUTPUT_STREAM_STDERR)
pieces = st.lists(st.tuples(st.sampled_from(STREAMS), st.binary(min_size=1, max_size=6)), max_size=12)


def events(
    written: list[tuple[execution_pb2.OutputStream, bytes]], result: str = ""
) -> list[tools_pb2.ExecuteResponse]:
    outputs = [
        tools_pb2.ExecuteResponse(output=execution_pb2.RunOutput(stream=stream, data=data))
        for stream, data in written
    ]
    return [*outputs, tools_pb2.ExecuteResponse(exit=execution_pb2.RunExit(result_json=result))]


@given(pieces)
def test_each_stream_and_both_as_they_were_seen_are_read_whole(
    written: list[tuple[execution_pb2.OutputStream, bytes]],
) -> None:
    said = output_texts(events(written))
    assert said.channel == ethics_pb2.OUTPUT_CHANNEL_TOOL_RESULT
    for chosen in ({STREAMS[0]}, {STREAMS[1]}, set(STREAMS)):
        whole = b"".join(data for stream, data in written if stream in chosen).decode("utf-8", "replace")
        assert any(whole in text for text in said.texts.values()) or not whole


@given(st.text(max_size=40))
def test_a_result_is_read_without_its_escapes(words: str) -> None:
    result = json.dumps({"stdout": words}, ensure_ascii=True)
    assert words in output_texts(events([], result)).texts["exit.result_json#strings"]


def test_output_that_the_result_repeats_is_read_once() -> None:
    said = output_texts(events([(STREAMS[0], b"hello")], '{"stdout": "hello"}'))
    assert sorted(said.texts) == ["exit.result_json", "exit.result_json#strings"]


def test_a_text_that_is_no_json_is_read_as_it_stands() -> None:
    assert strings_in("{broken") == "{broken"
    deep = "[" * 5000 + "]" * 5000
    assert strings_in(deep) in {deep, ""}


def test_names_of_artifacts_are_read_and_digests_are_not() -> None:
    exit_event = execution_pb2.RunExit(stdout_sha256=b"a" * 32)
    exit_event.artifacts.add(path="out/words.txt").content.sha256 = b"b" * 32
    texts = output_texts([tools_pb2.ExecuteResponse(exit=exit_event)]).texts
    assert texts == {"exit.artifacts.path": "out/words.txt"}


def test_what_the_service_says_of_itself_is_nobodys_words() -> None:
    isolation = execution_pb2.Isolation(version="bubblewrap 0.8.0", controls=["net.none", "seccomp"])
    begun = tools_pb2.ExecuteResponse(started=execution_pb2.RunStarted(run="runs/0.a", isolation=isolation))
    over = tools_pb2.ExecuteResponse(
        exit=execution_pb2.RunExit(
            run="runs/0.a", isolation=isolation, approval="approvals/0.b", reason="why"
        )
    )
    collected = tools_pb2.ExecuteResponse()
    collected.artifact.artifact.name, collected.artifact.artifact.path = "runs/0.a/artifacts/0", "out/a"
    assert output_texts([begun, collected, over]).texts == {
        "artifact.artifact.path": "out/a",
        "exit.reason": "why",
    }


def test_of_a_list_of_runs_only_what_runs_wrote_is_read() -> None:
    run = execution_pb2.Run(name="runs/0.a", owner="keys/1", tool="shell", reason="why")
    for path in ("out/a", "out/b"):
        run.artifacts.add(name="runs/0.a/artifacts/0", path=path).content.name = path
    said = output_texts([tools_pb2.ListRunsResponse(runs=[run, execution_pb2.Run(name="runs/0.b")])])
    assert said.texts == {"runs.artifacts.path": "out/a\nout/b", "runs.reason": "why"}
    assert said.channel == ethics_pb2.OUTPUT_CHANNEL_TOOL_RESULT


def test_a_models_words_are_checked_as_text() -> None:
    said = output_texts([inference_pb2.ChatResponse(delta=inference_pb2.ChatDelta(text="Hi"))])
    assert (said.texts, said.channel) == ({"delta.text": "Hi"}, ethics_pb2.OUTPUT_CHANNEL_TEXT)


def test_bytes_that_spell_nothing_are_one_character() -> None:
    assert document_text(b"a\xff\xfe\x00\x01b\n\tc") == "a\ufffdb\n\tc"


@given(
    st.binary(max_size=20), st.text(alphabet="abcdef ghi\n", min_size=1, max_size=20), st.binary(max_size=20)
)
def test_words_among_other_bytes_stay_readable(before: bytes, words: str, after: bytes) -> None:
    assert words in document_text(before + b"\x00" + words.encode() + b"\x00" + after)


def test_a_run_that_breaks_off_is_no_answer() -> None:
    for broken in ([], [tools_pb2.ExecuteResponse(started=execution_pb2.RunStarted(run="r"))]):
        with pytest.raises(UnavailableError):
            require_exit(broken)
    require_exit(events([]))
    require_exit([inference_pb2.EmbedResponse()])
    assert exit_of([inference_pb2.EmbedResponse()]) is None


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (execution_pb2.RUN_STATUS_OK, "ok", ""),
        (execution_pb2.RUN_STATUS_ERROR, "ok", "ERROR"),
        (execution_pb2.RUN_STATUS_TIMEOUT, "ok", "TIMEOUT"),
        (execution_pb2.RUN_STATUS_REFUSED, "refused", "REFUSED"),
        (execution_pb2.RUN_STATUS_APPROVAL_REQUIRED, "refused", "APPROVAL_REQUIRED"),
        (execution_pb2.RUN_STATUS_SETUP_FAILED, "error", "SETUP_FAILED"),
        (execution_pb2.RUN_STATUS_LAUNCHER_LOST, "error", "LAUNCHER_LOST"),
    ],
)
def test_a_program_that_failed_was_carried_out_and_one_that_never_began_was_not(
    status: execution_pb2.RunStatus, said: str, code: str
) -> None:
    ending = run_ending(execution_pb2.RunExit(run="r", status=status), decision_pb2.Decision())
    assert (ending.status, ending.code) == (said, code)
    assert ending.facts["run.name"] == "r"


def test_a_run_that_never_began_took_place_nowhere() -> None:
    assert isolation_text(execution_pb2.Isolation()) == ""


def test_of_an_operation_only_its_error_is_read() -> None:
    """What else it holds are numbers, digests and the caller's own words."""
    operation = operations_pb2.Operation(name="operations/a")
    operation.metadata.Pack(job_pb2.CreateTrainingJobMetadata(job="trainingJobs/a"))
    assert output_texts([operation]).texts == {}
    operation.error.message = "row 3 is wrong"
    assert output_texts([operation]).texts == {"error[0].message": "row 3 is wrong"}
