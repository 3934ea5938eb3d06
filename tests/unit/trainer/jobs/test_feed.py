"""Watchers of one job: each event once, in order, as long as it is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from kala.trainer.v1 import job_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.jobs.feed import KEPT_SECONDS, SAVED_EVERY, Feed


def job(state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_TRAINING) -> job_pb2.TrainingJob:
    return job_pb2.TrainingJob(progress=job_pb2.TrainingProgress(state=state))


def draft(number: int) -> pb.WatchTrainingJobResponse:
    return pb.WatchTrainingJobResponse(draft=job_pb2.DraftEvent(drafts=number))


def end() -> pb.WatchTrainingJobResponse:
    return pb.WatchTrainingJobResponse(job=job(job_pb2.JOB_STATE_SUCCEEDED))


async def all_of(feed: Feed, after: int = 0) -> list[int]:
    return [event.sequence async for event in feed.watch(job(), after)]


async def test_a_watcher_that_comes_late_sees_the_state_now_and_what_follows(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    for number in range(3):
        feed.add(draft(number))
    watching = asyncio.create_task(all_of(feed))
    await asyncio.sleep(0)
    feed.add(draft(9))
    feed.add(end())
    assert await watching == [3, 4, 5]
    assert await all_of(feed, after=2) == [3, 4, 5]


async def test_an_ended_job_is_told_at_once(tmp_path: Path) -> None:
    events = [event async for event in Feed(tmp_path).watch(job(job_pb2.JOB_STATE_FAILED), 0)]
    assert [event.job.progress.state for event in events] == [job_pb2.JOB_STATE_FAILED]


async def test_events_are_forgotten_after_an_hour_and_asking_for_them_says_so(tmp_path: Path) -> None:
    now = 1_000.0
    feed = Feed(tmp_path, clock=lambda: now)
    feed.add(draft(0))
    feed.add(draft(1))
    now += KEPT_SECONDS + 1
    feed.add(draft(2))
    feed.add(end())
    with pytest.raises(FailedPreconditionError, match="there are 3 to 4"):
        await all_of(feed, after=1)
    assert await all_of(feed, after=2) == [3, 4]


async def test_numbers_rise_over_a_restart(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    for number in range(SAVED_EVERY + 5):
        feed.add(draft(number))
    again = Feed(tmp_path)
    again.add(draft(0))
    assert again.last > feed.last
    (tmp_path / "sequence").write_text("not a number")
    assert Feed(tmp_path).last == 0
