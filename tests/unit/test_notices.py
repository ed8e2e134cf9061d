"""How a notice is posted, and what is read of the answer."""

import asyncio
import json
import logging
import time
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

import notices
from hooks import Answer, Hook, a_hook, accept, dribble, hang, never_end, redirect
from notices import NoticeWorkflow
from support import ROOT, eventually
from worker import SANDBOX

HISTORIES = sorted((ROOT / "tests" / "notice_histories").iterdir())


async def post(hook: Hook) -> int:
    posting = asyncio.run_coroutine_threadsafe(notices._post(hook.url, "{}"), notices._loop())
    async with asyncio.timeout(10):
        return await asyncio.wrap_future(posting)


async def test_the_body_of_an_answer_is_not_waited_for() -> None:
    async with a_hook(never_end) as hook:
        assert await post(hook) == 200


@pytest.mark.parametrize("answer", [hang, dribble])
async def test_a_post_takes_ten_seconds_at_most(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert notices.POST_SECONDS == 10
    monkeypatch.setattr(notices, "POST_SECONDS", 0.5)
    async with a_hook(answer) as hook:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            await post(hook)
        assert time.monotonic() - start < 5

        await eventually(lambda: hook.ended == 1)


@pytest.mark.parametrize(
    "location", ["/elsewhere", "http://[", "//", "ftp://\N{SNOWMAN}:99999/", "http://a" * 9_000]
)
async def test_a_redirect_is_not_followed(location: str) -> None:
    async with a_hook(redirect(location)) as hook:
        assert await post(hook) == 302
    assert len(hook.posts) == 1


async def test_the_address_is_not_logged_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with a_hook(accept) as hook:
        await post(hook)
    assert "secret-token" not in caplog.text


@pytest.mark.parametrize("file", HISTORIES, ids=lambda file: file.name)
async def test_a_recorded_notice_replays(file: Path) -> None:
    history = WorkflowHistory.from_json("notice", json.loads(file.read_text()))
    replayer = Replayer(workflows=[NoticeWorkflow], workflow_runner=SANDBOX)
    await replayer.replay_workflow(history)
