"""What an engine over real processes says of itself."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import config_alone, random_ids
from support.fake_async_engine import wait_until

from ppinfer import AsyncPPInferEngine, PPInferEngine, SamplingParams
from ppinfer.comm.control import Channel
from ppinfer.engine import host as hosts
from ppinfer.engine.host_messages import AskState, StateAnswer, Stop, decode_from_host, encode
from ppinfer.engine.state import EngineState, LiveState
from ppinfer.trace.clock import Activity, Recording

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {"pp_size": 2, "load_format": "dummy"}
ENDLESS = SamplingParams(max_tokens=30_000, ignore_eos=True)
PATIENCE = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return config_alone(
        tmp_path_factory.mktemp("model"), num_hidden_layers=4, max_position_embeddings=32_768
    )


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[PPInferEngine]:
    with PPInferEngine(folder, micro_batch_size=2, **SETTINGS) as engine:
        yield engine


def grows(before: EngineState, after: EngineState) -> bool:
    """Whether no counter went down."""
    numbers = ("prompt_tokens", "cached_tokens", "queried_tokens", "new_tokens", "preemptions")
    of_stages = ("steps", "bytes_sent", "busy", "wait_plan", "wait_input", "send", "restarts")
    pairs = [(getattr(before, name), getattr(after, name)) for name in numbers]
    pairs += [(before.finished[how], after.finished[how]) for how in before.finished]
    for one, other in zip(before.stages, after.stages, strict=True):
        pairs += [(getattr(one, name), getattr(other, name)) for name in of_stages]
    return all(one <= other for one, other in pairs)


def test_counts_are_those_of_what_was_asked(engine: PPInferEngine) -> None:
    before = engine.state(PATIENCE)
    prompts = [random_ids(n, seed=n) for n in (40, 3, 17, 40)]  # the last is the first once more
    for _ in range(2):
        engine.generate(prompts, SamplingParams(max_tokens=6, ignore_eos=True))
    began = time.monotonic()
    after = engine.state(PATIENCE)
    age = time.monotonic() - began
    assert grows(before, after)
    assert after.prompt_tokens - before.prompt_tokens == 200
    assert after.queried_tokens - before.queried_tokens == 200
    assert 32 <= after.cached_tokens - before.cached_tokens < 200
    assert after.new_tokens - before.new_tokens == 48
    assert after.finished["length"] - before.finished["length"] == 8
    for name in ("time_to_first_token", "queue", "prefill", "decode", "end_to_end"):
        one, other = getattr(before.latency, name), getattr(after.latency, name)
        assert (name, other.count - one.count) == (name, 8)
    inter = after.latency.inter_token.count - before.latency.inter_token.count
    assert inter == 48 - 8
    assert (after.running, after.waiting, after.kv_blocks_used, after.sequences) == (0, 0, 0, [])
    assert after.kv_blocks > 0
    first, last = after.stages
    assert (first.first_layer, last.last_layer) == (0, 4)
    assert first.bytes_sent > 0
    assert min(first.steps, last.steps, first.compute, last.sample) > 0
    assert min(first.weight_bytes, last.kv_cache_bytes, first.rss_bytes) > 0
    assert max(first.heartbeat_age, last.heartbeat_age) < age


def test_sequences_under_way_are_known(engine: PPInferEngine) -> None:
    aborted = engine.state().finished["abort"]
    with engine.stream([random_ids(9, seed=n) for n in range(6)], ENDLESS) as stream:
        for _ in range(20):
            next(stream)
        state = engine.state()
        assert (state.running, state.waiting) == (4, 2)
        assert state.kv_blocks_used >= 4
        phases = [sequence.phase for sequence in state.sequences]
        assert (phases.count("decode"), phases.count("waiting")) == (4, 2)
        assert all(sequence.prompt_tokens == 9 for sequence in state.sequences)
        assert sum(sequence.new_tokens for sequence in state.sequences) >= 20
        assert all(0 < sequence.age < 60 for sequence in state.sequences)
    wait_until(lambda: not engine.state().running)
    assert engine.state().finished["abort"] == aborted + 6


def test_a_stage_that_hangs_holds_up_nobody(engine: PPInferEngine) -> None:
    def lag() -> float:
        """For how much longer nothing was heard of the last stage than of the first."""
        first, last = engine.state(patience=0.1).stages
        return last.heartbeat_age - first.heartbeat_age

    engine.state(PATIENCE)
    pid = engine.stage_pids[1]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.3)
        began = time.monotonic()
        last = engine.state(patience=0.1).stages[1].heartbeat_age
        engine.live(patience=0.1)
        assert time.monotonic() - began < 30
        wait_until(lambda: lag() >= 0.3)
        assert engine.state(patience=0.1).stages[1].heartbeat_age > last
    finally:
        os.kill(pid, signal.SIGCONT)
        engine.look_away()
    wait_until(lambda: engine.state(PATIENCE).stages[1].heartbeat_age < last)


def spans(live: list[LiveState], stage: int) -> list[tuple[int, int, int, int]]:
    parts = [part for one in live if one.spans for part in one.spans[stage]]
    return [
        span for part in parts for span in Recording(part.start, part.packed, part.dropped).spans()
    ]


def test_who_watches_gets_every_span_once_and_a_trace_may_be_made_beside(
    engine: PPInferEngine,
) -> None:
    assert engine.live(PATIENCE).spans == [[], []]
    looks = []
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    with engine.trace() as tracing:
        for _ in range(3):
            engine.generate([random_ids(5)], params)
            looks.append(engine.live(PATIENCE))
    looks.append(engine.live(PATIENCE))
    engine.look_away()
    steps = {step for look in looks for step in look.steps}
    assert tracing.trace is not None
    assert set(tracing.trace.steps) == steps
    assert {label.words for look in looks for label in look.steps.values()} >= {"decode 1"}
    for stage in range(2):
        found = spans(looks, stage)
        assert all(one[3] == other[2] for one, other in pairwise(found))
        assert [s for kind, s, *_ in found if kind == Activity.COMPUTE] == sorted(steps)
        traced = [s.step for s in tracing.trace.stages[stage].spans if s.activity == "compute"]
        assert traced == sorted(steps)
    engine.generate([random_ids(5)], params)
    assert engine.live(PATIENCE).spans == [[], []], "nothing is recorded while nobody watches"
    engine.look_away()


def test_asynchronously(folder: Path) -> None:
    async def run() -> None:
        async with await AsyncPPInferEngine.create(folder, **SETTINGS) as engine:
            stream = engine.stream([1, 2], ENDLESS)
            await anext(stream)
            looks = [await engine.live()]
            while not spans(looks, 1):
                await anext(stream)
                looks.append(await engine.live())
            state = await engine.state()
            assert [one.seq_id for one in state.sequences] == [stream.seq_id]
            assert looks[1].now > looks[0].now
            engine.look_away()
            stream.cancel()

    asyncio.run(asyncio.wait_for(run(), 120))


class Watched:
    def __init__(self) -> None:
        self.looked_away = 0

    def live(self) -> LiveState:
        return LiveState(1, EngineState(), [], {})

    def look_away(self) -> None:
        self.looked_away += 1


def test_an_owner_that_asks_no_more_watches_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_FORGET_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    host, engine = hosts.Host(Channel(theirs)), Watched()
    for work in (lambda: host._show(engine), host._write, lambda: host._serve(engine)):  # type: ignore[arg-type]
        threading.Thread(target=work, daemon=True).start()
    channel = Channel(ours)
    channel.send(encode(AskState(4, True)))
    answer = decode_from_host(channel.receive())
    assert isinstance(answer, StateAnswer)
    assert answer.number == 4
    wait_until(lambda: engine.looked_away == 1)
    channel.send(encode(Stop()))
    channel.close()
