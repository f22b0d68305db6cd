"""The comparison: rows take turns at each shape, each in a process that loaded once. No torch.

For each model and dtype all rows are brought up; then, shape by shape, each row runs once for
warmth and the counted runs alternate (A B C A B C …), so that what the machine does meanwhile meets
all of them alike. Where they do not all fit in memory together, those that do take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ppinfer.bench.cases import Row, Shape
from ppinfer.bench.limits import Rates, ceiling_seconds, physical_seconds
from ppinfer.bench.measure import (
    ITEMSIZE,
    estimate_seconds,
    measure_arrangements,
    measure_rates,
    needed_bytes,
)
from ppinfer.bench.named import Subject
from ppinfer.bench.procfs import available_bytes
from ppinfer.bench.records import Cell, Comparison, Run, compare
from ppinfer.bench.remote import Worker, WorkerFailed

_LOAD_SECONDS = 900.0
_RUN_SECONDS = 60.0
"""What one run may take beyond the time of a whole cell, before it is given up."""
_CHOSEN = ("micro_batch_size", "num_micro_batches", "max_prefill_tokens", "threads", "comm")


@dataclass(frozen=True)
class Protocol:
    """How it is measured. ``settings`` are those of every engine, beside what its row asks for."""

    repeats: int = 3
    max_cell_seconds: float = 120.0
    memory_limit: int = 0
    ceiling: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


Notice = Callable[[str, float, float], None]
"""Called with what is going on, how much of it is done, and how much there is."""


def compare_rows(
    subject: Subject,
    dtype: str,
    shapes: Sequence[Shape],
    rows: Sequence[Row],
    protocol: Protocol,
    notice: Notice,
) -> Iterator[Comparison]:
    """Measure every row at every shape; yields the same comparison each time it has grown."""
    notice(f"{subject.name} {dtype}: limits of this machine", 0, 1)
    rates = measure_rates(subject.config, dtype)
    grid = _Grid(subject, dtype, shapes, rows, protocol, rates)
    found = Comparison(subject.name, dtype, rates, grid.in_order())
    yield found
    runnable = [shape for shape in shapes if any(grid.open(shape, row) for row in rows)]
    if not runnable:
        return
    if protocol.ceiling:
        notice(f"{subject.name} {dtype}: kernels at the model's shapes", 0, 1)
        grid.set_ceilings(runnable)
    groups = grid.groups()
    found.groups = [[row.name for row in group] for group in groups]
    for group in groups:
        with ExitStack() as stack:
            team = _Team(grid, found, group, stack, notice)
            for shape in runnable:
                team.measure(shape)
                compare([grid.cells[shape, row] for row in rows])
                yield found


class _Grid:
    """All cells of one model and dtype."""

    def __init__(
        self,
        subject: Subject,
        dtype: str,
        shapes: Sequence[Shape],
        rows: Sequence[Row],
        protocol: Protocol,
        rates: Rates,
    ) -> None:
        self.subject, self.dtype = subject, dtype
        self.shapes, self.rows, self.protocol = shapes, rows, protocol
        self._rates = rates
        self.cells = {(shape, row): self._cell(shape, row) for shape in shapes for row in rows}

    def in_order(self) -> list[Cell]:
        return [self.cells[shape, row] for shape in self.shapes for row in self.rows]

    def open(self, shape: Shape, row: Row) -> bool:
        """Whether the cell is still to be measured or has been, with success so far."""
        return self.cells[shape, row].status == "ok"

    def _cell(self, shape: Shape, row: Row) -> Cell:
        model, itemsize = self.subject.config, ITEMSIZE[self.dtype]
        cell = Cell(
            model=self.subject.name,
            dtype=self.dtype,
            shape=str(shape),
            row=row.name,
            stages=row.stages,
            micro_batches=row.micro_batches,
            new_tokens=shape.new_tokens,
            prompt_tokens=shape.prompt_tokens,
            limit=shape.new_tokens / physical_seconds(model, shape, itemsize, self._rates),
        )
        runs = self.protocol.repeats + 1
        seconds = estimate_seconds(model, self.dtype, shape, self._rates, runs)
        needed, free = self._needed(row), available_bytes()
        if seconds > self.protocol.max_cell_seconds:
            cell.status, cell.why = "skipped", f"~{seconds:.0f} s"
        elif needed > free:
            cell.status = "oom"
            cell.why = f"about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        elif shape.prompt + shape.new > model.max_position:
            cell.status, cell.why = "skipped", f"the model has {model.max_position} positions"
        return cell

    def _needed(self, row: Row) -> int:
        tokens = max(shape.prompt_tokens + shape.new_tokens for shape in self.shapes)
        return needed_bytes(self.subject.config, self.dtype, row.stages, tokens)

    def groups(self) -> list[list[Row]]:
        """Rows that fit in memory together, as many as do; usually that is all of them."""
        groups: list[list[Row]] = []
        free = left = available_bytes()
        for row in self.rows:
            if not groups or self._needed(row) > left:
                groups.append([])
                left = free
            groups[-1].append(row)
            left -= self._needed(row)
        return groups

    def set_ceilings(self, shapes: Sequence[Shape]) -> None:
        model, itemsize = self.subject.config, ITEMSIZE[self.dtype]
        arrangements = measure_arrangements(model, self.dtype, shapes)
        for shape in shapes:
            seconds = ceiling_seconds(model, shape, itemsize, self._rates, arrangements)
            # Where kernels read at full speed, two measurements of the same thing differ a little.
            seconds = max(seconds, physical_seconds(model, shape, itemsize, self._rates))
            for row in self.rows:
                self.cells[shape, row].ceiling = shape.new_tokens / seconds


class _Team:
    """The worker processes of some rows, brought up when first needed and again after a fall."""

    def __init__(
        self,
        grid: _Grid,
        comparison: Comparison,
        rows: Sequence[Row],
        stack: ExitStack,
        notice: Notice,
    ) -> None:
        self._grid, self._comparison = grid, comparison
        self._rows, self._stack, self._notice = rows, stack, notice
        self._workers: dict[Row, tuple[Worker, dict[str, Any]]] = {}

    def measure(self, shape: Shape) -> None:
        """A warm-up each, then the counted turns; a disturbed turn is done again, a few times."""
        cells, protocol = self._grid.cells, self._grid.protocol
        for row, run in self._turn(shape, 0).items():
            seconds = run.seconds * protocol.repeats
            if seconds > protocol.max_cell_seconds:
                cells[shape, row].status, cells[shape, row].why = "skipped", f"~{seconds:.0f} s"
        counted = again = 0
        while counted < protocol.repeats:
            runs = self._turn(shape, counted + again + 1)
            if again < protocol.repeats and any(run.is_disturbed for run in runs.values()):
                again += 1
                continue
            counted += 1
            for row, run in runs.items():
                cells[shape, row].runs.append(run)
        self._comparison.repeated_turns += again

    def _turn(self, shape: Shape, turn: int) -> dict[Row, Run]:
        """One run of each row whose cell is open; those that failed are missing."""
        grid = self._grid
        rows = [row for row in self._rows if grid.open(shape, row)]
        label = f"{grid.subject.name} {grid.dtype} {shape}"
        runs = {}
        for index, row in enumerate(rows):
            done = min(turn, grid.protocol.repeats) * len(rows) + index
            self._notice(f"{label}: {row.name}", done, len(rows) * (grid.protocol.repeats + 1))
            run = self._run(shape, row, turn) if grid.open(shape, row) else None
            if run is not None:
                runs[row] = run
        return runs

    def _run(self, shape: Shape, row: Row, turn: int) -> Run | None:
        """One run; a failure is written into the cell, and the worker is given up."""
        grid = self._grid
        cell = grid.cells[shape, row]
        if not self._is_up(row):
            return None
        worker, chosen = self._workers[row]
        try:
            answer = worker.ask(
                "run",
                grid.protocol.max_cell_seconds + _RUN_SECONDS,
                prompts=shape.prompts(grid.subject.config.vocab_size, turn),
                new=shape.new,
            )
        except WorkerFailed as failure:
            cell.status, cell.why, cell.runs = failure.status, str(failure), []
            self._workers.pop(row)[0].kill()
            return None
        cell.chosen = chosen | {"layers": answer.pop("layers", [])}
        return Run(**answer)

    def _is_up(self, row: Row) -> bool:
        """Bring the row up if it is not; a failure is that of all its cells to come."""
        if row in self._workers:
            return True
        grid = self._grid
        shapes = [shape for shape in grid.shapes if grid.open(shape, row)]
        settings = {"dtype": grid.dtype, "load_format": grid.subject.load_format}
        if not row.is_hf:
            settings |= grid.protocol.settings | row.settings(shapes)
        worker = self._stack.enter_context(
            Worker("hf" if row.is_hf else "pipeline", memory_limit=grid.protocol.memory_limit)
        )
        try:
            loaded = worker.ask("load", _LOAD_SECONDS, model=grid.subject.path, settings=settings)
        except WorkerFailed as failure:
            worker.kill()
            for cell in (grid.cells[shape, row] for shape in shapes):
                if not cell.runs:
                    cell.status, cell.why = failure.status, str(failure)
            return False
        used = loaded["settings"]
        chosen = {name: used[name] for name in _CHOSEN if used.get(name) is not None}
        chosen |= {"notes": loaded["notes"], "choices": loaded["choices"]}
        chosen["load_seconds"] = loaded["seconds"]
        self._workers[row] = worker, chosen
        return True
