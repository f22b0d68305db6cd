"""How commands end that are told to."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from ppinfer.cli.terminal import EXIT_TERMINATED, guarded


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):  # a handler is run between two instructions
        pass


def test_a_command_that_is_terminated() -> None:
    ended: list[str] = []

    @guarded
    def command() -> None:
        try:
            terminate()
            ended.append("not")
        finally:
            ended.append("properly")

    with pytest.raises(SystemExit) as caught:
        command()
    assert (caught.value.code, ended) == (EXIT_TERMINATED, ["properly"])


def test_nothing_that_a_loop_runs_can_swallow_it() -> None:
    ended: list[str] = []

    async def hungry() -> None:
        try:
            terminate()
        except BaseException:
            ended.append("swallowed")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("properly")

    with pytest.raises(SystemExit) as caught:
        guarded(asyncio.run)(hungry())
    assert (caught.value.code, ended) == (EXIT_TERMINATED, ["properly"])
