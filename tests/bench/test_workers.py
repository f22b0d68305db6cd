"""Worker processes: what they answer, how they end, and the comparison they serve."""

from __future__ import annotations

import os
import signal

import pytest
from support.processes import is_running

from ppinfer.bench import throughput
from ppinfer.bench.cases import Row, Shape, rows_of
from ppinfer.bench.comm import best, measure_comm, verdict
from ppinfer.bench.limits import Rates
from ppinfer.bench.named import opened
from ppinfer.bench.records import Comparison, Run
from ppinfer.bench.remote import Worker, WorkerFailed
from ppinfer.bench.throughput import Protocol, compare_rows
from ppinfer.bench.worker import is_out_of_memory
from ppinfer.errors import CapacityError, CheckpointError

pytestmark = pytest.mark.slow
SHAPES = [Shape(3, 8, 4), Shape(1, 8, 4)]
ROWS = rows_of((1, 2))
TIMEOUT = 60.0


def silent(event: str, done: float, total: float) -> None:
    pass


def compare(dtype: str, protocol: Protocol, rows: tuple[Row, ...] = ROWS) -> Comparison:
    with opened("toy") as subject:
        return list(compare_rows(subject, dtype, SHAPES, rows, protocol, silent))[-1]


def test_every_row_is_measured_at_every_shape() -> None:
    found = compare("fp32", Protocol(repeats=2))
    assert [cell.status for cell in found.cells] == ["ok"] * 6, [cell.why for cell in found.cells]
    assert [(cell.shape, cell.stages) for cell in found.cells] == [
        (shape, stages) for shape in ("3x8x4", "1x8x4") for stages in (0, 1, 2)
    ]
    for cell in found.cells:
        assert len(cell.runs) == 2
        assert len(cell.ratios) == (0 if cell.is_hf else 2)
        assert all(run.cached_tokens == 0 and run.peak_bytes for run in cell.runs)
        assert cell.limit is not None
        assert cell.ceiling is not None
        assert 0 < cell.ceiling <= cell.limit
        assert len(cell.stage_median("busy")) == cell.stages
    assert found.groups == [["HF generate", "1 process", "2 stages"]]


def test_cells_that_would_take_too_long_are_skipped_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "Worker", None)
    monkeypatch.setattr(throughput, "measure_arrangements", None)
    found = compare("bf16", Protocol(max_cell_seconds=1e-9))
    assert {cell.status for cell in found.cells} == {"skipped"}


def test_too_little_memory_is_a_cell_and_not_a_crash() -> None:
    protocol = Protocol(repeats=1, memory_limit=400 << 20, ceiling=False)
    found = compare("fp32", protocol, rows_of((1,)))
    assert [cell.status for cell in found.cells] == ["oom"] * 4, [cell.why for cell in found.cells]


def test_out_of_memory_has_many_names() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(CapacityError("One block takes more."))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"
                                         " memory: you tried to allocate 8 bytes."))  # fmt: skip
    assert not is_out_of_memory(CheckpointError("There is no such folder: memory."))


def test_a_worker_says_what_went_wrong_and_goes_on() -> None:
    with Worker("probe", threads=1) as worker:
        for _ in range(2):
            with pytest.raises(WorkerFailed, match="no attribute 'juggle'"):
                worker.ask("juggle", TIMEOUT)
    assert not is_running(worker.pid)


def test_a_killed_worker_ran_out_of_memory_and_a_silent_one_out_of_time() -> None:
    with Worker("probe", threads=1) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed) as failure:
            worker.ask("limits", TIMEOUT, dtype="fp32", num_bytes=1 << 20, threads=1)
        assert failure.value.status == "oom"
    with Worker("probe", threads=1) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerFailed) as failure:
            worker.ask("limits", 0.01, dtype="fp32", num_bytes=1 << 20, threads=1)
        assert failure.value.status == "timeout"
        worker.kill()


def test_transports_carry_the_moment_of_sending() -> None:
    cells = list(measure_comm((2,), (64, 100_000), 1e-3, 1, silent, seconds=0.1))[-1]
    assert not any(cell.why for cell in cells), [cell.why for cell in cells]
    for cell in cells:
        assert 0 < cell.delays[0] < 1
        assert 0 < cell.efficiency[0] < 1.2
    assert best(cells, 2) in {cell.comm for cell in cells}
    assert verdict(cells).startswith("Best by efficiency: 2 stages: ")
    assert best(cells, 3) is None


def test_rows_that_do_not_fit_together_take_turns_in_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "available_bytes", lambda: 1_000 << 20)
    found = compare("fp32", Protocol(repeats=1, ceiling=False), rows_of((1, 2), hf=False))
    assert found.groups == [["1 process"], ["2 stages"]]
    assert [cell.status for cell in found.cells] == ["ok"] * 4


def test_a_disturbed_turn_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = iter([False, True, False, False])  # the warm-up, and three turns

    def turn(self: object, shape: Shape, number: int) -> dict[Row, Run]:
        other = 0.3 if next(disturbed) else 0.0
        return {Row(1): Run(1.0, 0.5, 0.5, 3, 0.1, 0.1, other_cpu=other)}

    monkeypatch.setattr(throughput._Team, "_turn", turn)
    monkeypatch.setattr(throughput, "measure_rates", lambda model, dtype: Rates(1e10, 1e12))
    with opened("toy") as subject:
        protocol = Protocol(repeats=2, ceiling=False)
        rows, shapes = [Row(1)], [Shape(1, 8, 4)]
        (*_, found) = compare_rows(subject, "fp32", shapes, rows, protocol, silent)
    assert found.repeated_turns == 1
    assert [run.other_cpu for run in found.cells[0].runs] == [0.0, 0.0]
