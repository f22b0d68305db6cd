"""Figures of a run out of the moments at which its tokens came."""

from __future__ import annotations

import os
import time

import pytest

from ppinfer.bench.procfs import peak_bytes, reset_peak
from ppinfer.bench.timing import Watched, summarise
from ppinfer.engine.cpu_time import Reading, cpu_seconds


def test_a_run_is_split_where_every_sequence_has_its_first_token() -> None:
    watched = Watched()
    watched.started, watched.ended = 10.0, 20.0
    found = summarise([[11.0, 12.0, 13.0], [12.0, 16.0, 20.0]], 3, watched)
    assert found["seconds"] == 10.0
    assert found["prefill_seconds"] == 2.0
    assert found["first_token_seconds"] == 1.5
    assert found["decoded"] == 3  # of the first sequence one, of the second two
    assert found["token_p50"] == 1.0
    assert found["token_p99"] == 4.0


def test_a_sequence_that_ended_early_spoils_the_run() -> None:
    with pytest.raises(RuntimeError, match="got 2 tokens instead of 3"):
        summarise([[1.0, 2.0, 3.0], [1.0, 2.0]], 3, Watched())


def test_processor_time_and_memory_of_a_process() -> None:
    pid = os.getpid()
    started, until = time.perf_counter(), time.process_time() + 0.1
    before = Reading.now([pid])
    while time.process_time() < until:
        sum(range(10_000))
    after = Reading.now([pid])
    assert after.own - before.own >= 0.05
    # Clocks of a reading are read one after the other, and processor time is told in whole ticks.
    most = (time.perf_counter() - started + 0.05) / (after.at - before.at)
    assert all(0.0 <= share <= most for share in after.shares_since(before))
    block = bytearray(64 << 20)
    assert peak_bytes(pid) >= len(block)
    del block
    reset_peak(pid)
    assert peak_bytes(pid) > 0
    assert cpu_seconds(2**22 + 1) == peak_bytes(2**22 + 1) == 0  # there is no such process
