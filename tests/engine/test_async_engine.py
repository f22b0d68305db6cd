"""The asynchronous engine over real processes and a tiny model."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import make_model, random_ids, save_model
from support.processes import Marked, run_python

from ppinfer import (
    AsyncPPInferEngine,
    CapacityError,
    CheckpointError,
    ConfigError,
    EngineClosedError,
    PPInferEngine,
    RequestError,
    SamplingParams,
    StageError,
)

pytestmark = pytest.mark.slow
ENDLESS = SamplingParams(max_tokens=30_000, ignore_eos=True)
SETTINGS: dict[str, Any] = {"pp_size": 2, "micro_batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model("llama", num_hidden_layers=4, max_position_embeddings=32_768)
    return save_model(model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(folder: Path, runner: asyncio.Runner) -> Iterator[AsyncPPInferEngine]:
    engine = runner.run(AsyncPPInferEngine.create(folder, **SETTINGS))
    yield engine
    runner.run(engine.close())


async def tokens_of(
    engine: AsyncPPInferEngine, prompt: list[int], params: SamplingParams
) -> list[int]:
    return [token async for delta in engine.stream(prompt, params) for token in delta.token_ids]


def test_every_request_gets_the_tokens_of_the_synchronous_engine(
    engine: AsyncPPInferEngine, runner: asyncio.Runner, folder: Path
) -> None:
    prompts = [random_ids(length, seed=length) for length in (1, 40, 3, 129, 7, 64, 2)]
    params = [
        SamplingParams(max_tokens=9, ignore_eos=True, temperature=i % 2, seed=i)
        for i in range(len(prompts))
    ]

    async def all_at_once() -> list[list[int]]:
        pairs = zip(prompts, params, strict=True)
        return await asyncio.gather(*(tokens_of(engine, *pair) for pair in pairs))

    with PPInferEngine(folder, pp_size=1) as other:
        expected = [output.token_ids for output in other.generate(prompts, params)]
    assert runner.run(all_at_once()) == expected


def test_deltas_and_what_is_known_of_the_engine(
    engine: AsyncPPInferEngine, runner: asyncio.Runner
) -> None:
    async def deltas() -> list[Any]:
        params = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=2)
        async with engine.stream([5, 6, 7], params) as stream:
            assert stream.prompt_token_ids == [5, 6, 7]
            return [delta async for delta in stream]

    found = runner.run(deltas())
    assert [delta.index for delta in found] == [0, 0, 0]
    assert [delta.finish_reason for delta in found] == [None, None, "length"]
    assert all(len(delta.logprobs[0].top) == 2 for delta in found)
    assert all(delta.prompt_logprobs is None for delta in found)

    async def score() -> list[Any]:
        params = SamplingParams(max_tokens=0, prompt_logprobs=1)
        return [delta async for delta in engine.stream([5, 6, 7], params)]

    (scored,) = runner.run(score())
    assert (scored.token_ids, scored.finish_reason) == ([], "length")
    assert [entry and entry.token_id for entry in scored.prompt_logprobs] == [None, 6, 7]
    assert all(len(entry.top) == 1 for entry in scored.prompt_logprobs[1:])
    assert engine.info.limits.max_model_len == 32_768
    assert len(engine.info.stage_pids) == engine.info.pp_size == 2
    report = runner.run(engine.report())
    assert report.new_tokens == 0  # of the run that scored
    assert len(report.stages) == 2
    runner.run(engine.check(60))


def test_what_is_left_is_aborted_and_makes_room(
    engine: AsyncPPInferEngine, runner: asyncio.Runner
) -> None:
    """As many endless requests as the engine runs at once, ended in every way there is."""

    async def leave_one() -> None:
        async for _ in engine.stream([1, 2], ENDLESS):
            break  # and drop it

    async def close_one() -> None:
        stream = engine.stream([1, 2], ENDLESS)
        await anext(stream)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def cancel_one() -> None:
        task = asyncio.create_task(tokens_of(engine, [1, 2], ENDLESS))
        await asyncio.sleep(0)  # and now it waits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def all_of_them() -> list[int]:
        before = await engine.state()
        await asyncio.gather(leave_one(), close_one(), cancel_one(), cancel_one())
        after = await engine.state()
        assert after.finished["abort"] == before.finished["abort"] + 4
        return await tokens_of(engine, [9], SamplingParams(max_tokens=2, ignore_eos=True))

    assert len(runner.run(all_of_them())) == 2
    assert engine.is_alive


def test_requests_that_cannot_be_served_are_refused(
    engine: AsyncPPInferEngine, runner: asyncio.Runner
) -> None:
    with pytest.raises(RequestError, match="context holds 32768"):
        engine.stream([1] * 32_768, SamplingParams())
    with pytest.raises(RequestError, match="outside the vocabulary"):
        engine.stream([10_000], SamplingParams())
    with pytest.raises(RequestError, match="no tokenizer"):
        engine.encode("Hello")
    assert engine.encode([1, 2]) == (None, [1, 2])

    async def too_large_for_the_cache() -> None:
        async with await AsyncPPInferEngine.create(
            engine.info.model, kv_cache_memory=40_000
        ) as small:
            with pytest.raises(CapacityError, match="KV cache blocks"):
                await tokens_of(small, [1], SamplingParams(max_tokens=400))
            assert small.is_alive

    runner.run(too_large_for_the_cache())


def test_an_engine_that_cannot_stand_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    marked = Marked.new()
    for name, value in marked.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError):
        asyncio.run(AsyncPPInferEngine.create("/nowhere/at/all"))
    with pytest.raises(ConfigError, match="pp_size"):
        asyncio.run(AsyncPPInferEngine.create(folder, pp_size=0))
    with pytest.raises(CapacityError):
        asyncio.run(AsyncPPInferEngine.create(folder, kv_cache_memory=10))
    marked.assert_all_gone()


def test_a_start_that_is_cancelled_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    marked = Marked.new()
    for name, value in marked.environment.items():
        monkeypatch.setenv(name, value)

    async def run() -> None:
        starting = asyncio.create_task(
            AsyncPPInferEngine.create(folder, progress=lambda *_: starting.cancel(), **SETTINGS)
        )
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(run())
    marked.assert_all_gone()


def test_a_stage_that_dies_is_named_to_whoever_waits(folder: Path) -> None:
    async def run() -> None:
        async with await AsyncPPInferEngine.create(folder, **SETTINGS) as engine:
            stream = engine.stream([1, 2], ENDLESS)
            await anext(stream)
            os.kill(engine.info.stage_pids[1] or 0, signal.SIGKILL)
            with pytest.raises(StageError, match="Stage 1") as caught:
                async for _ in stream:
                    pass
            assert caught.value.stage == 1
            with pytest.raises(StageError, match="Stage 1"):
                await engine.check(60)
            assert not engine.is_alive
            with pytest.raises(StageError, match="Stage 1"):
                engine.stream([1], ENDLESS)

    asyncio.run(run())


def test_the_drivers_process_may_die_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = Marked.new()
    for name, value in marked.environment.items():
        monkeypatch.setenv(name, value)

    async def run() -> None:
        async with await AsyncPPInferEngine.create(folder, **SETTINGS) as engine:
            stream = engine.stream([1, 2], ENDLESS)
            await anext(stream)
            os.kill(engine.host_pid, signal.SIGKILL)
            with pytest.raises(StageError, match="engine's own process died"):
                async for _ in stream:
                    pass
            with pytest.raises(StageError, match="engine's own process died"):
                await engine.report()

    asyncio.run(run())
    marked.assert_all_gone()


def test_closing_ends_what_runs(folder: Path) -> None:
    async def run() -> None:
        engine = await AsyncPPInferEngine.create(folder)
        stream = engine.stream([1, 2], ENDLESS)
        await anext(stream)
        await asyncio.gather(engine.close(), engine.close())
        with pytest.raises(EngineClosedError):
            async for _ in stream:
                pass
        with pytest.raises(EngineClosedError):
            await engine.report()

    asyncio.run(run())


def test_nothing_outlives_a_program_that_does_not_close(folder: Path) -> None:
    done = run_python(
        "import asyncio, sys\n"
        "from ppinfer import AsyncPPInferEngine, SamplingParams\n"
        "async def main():\n"
        "    engine = await AsyncPPInferEngine.create(sys.argv[1], pp_size=2)\n"
        "    print((await anext(engine.stream([1], SamplingParams(max_tokens=30000)))).index)\n"
        "asyncio.run(main())\n",
        str(folder),
    )
    assert (done.status, done.out) == (0, "0\n"), done.err
