"""A batch from its first open line to its last: many requests at once, answers as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from ppinfer.batch.journal import Journal, digest
from ppinfer.batch.lines import Asked, Outcome, Problem, Response, custom_id_of, parse, read_lines
from ppinfer.errors import BatchError
from ppinfer.server.errors import ApiError

Progress = Callable[[str, float, float], None]


class Answerer(Protocol):
    """Whoever answers requests."""

    async def answer(self, asked: Asked) -> Response:
        """Whatever the status. Raises ``PPInferError`` where no request can be answered now."""
        ...


@dataclass
class Summary:
    """
    Attributes:
        requests: lines of the input.
        done_before: of these, how many an earlier run had answered.
        succeeded: answered by this run with what was asked for.
        failed: answered by this run with an error.
        invalid: lines that are no request.
        prompt_tokens, completion_tokens: of this run, as answers say.
    """

    requests: int = 0
    done_before: int = 0
    succeeded: int = 0
    failed: int = 0
    invalid: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        return self.done_before + self.succeeded + self.failed + self.invalid


def open_journal(source: Path, target: Path) -> Journal:
    """The output for an input that can be read and is another file.

    Raises:
        BatchError: see ``Journal``; or the input cannot be read.
    """
    next(read_lines(source), None)
    if target.exists() and target.samefile(source):
        raise BatchError("A batch's output cannot be the file that it reads.")
    return Journal(target)


def survey(source: Path, journal: Journal, progress: Progress) -> Summary:
    """Count what there is to do; one pass over the input.

    Raises:
        BatchError: the input cannot be read, or is not what the output was made from.
    """
    summary = Summary()
    known = 0
    for number, line in read_lines(source):
        summary.requests = number
        if number in journal.done:
            summary.done_before += 1
            known += digest(number, custom_id_of(line))
    progress("requests", summary.done_before, summary.requests)
    if (summary.done_before, known) != (journal.done.count, journal.digest):
        raise BatchError(
            f"The output has answers to other requests than {source} holds; name another file for "
            "them, or put the input back as it was."
        )
    return summary


async def run_batch(
    source: Path,
    journal: Journal,
    answerer: Answerer,
    summary: Summary,
    in_flight: int,
    progress: Progress,
) -> None:
    """Answer every line that is not done yet, ``in_flight`` at once; counts in ``summary``.

    Raises:
        PPInferError: requests can no longer be answered, or the files not be used. What was
            answered is written, and a later run goes on from there.
    """
    run = _Run(source, journal, answerer, summary, progress)
    started = time.perf_counter()
    workers = [asyncio.create_task(run.work()) for _ in range(in_flight)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        summary.seconds += time.perf_counter() - started


class _Run:
    def __init__(
        self,
        source: Path,
        journal: Journal,
        answerer: Answerer,
        summary: Summary,
        progress: Progress,
    ) -> None:
        self._journal, self._answerer = journal, answerer
        self._summary, self._progress = summary, progress
        self._open = self._open_lines(source)

    async def work(self) -> None:
        """Take the next open line, again and again; all workers share one pass over the file."""
        for number, line in self._open:
            self._journal.write(number, await self._outcome(line))
            self._progress("requests", self._summary.done, self._summary.requests)

    def _open_lines(self, source: Path) -> Iterator[tuple[int, bytes | None]]:
        for number, line in read_lines(source):
            # Lines after this one may be done too, but of those at work none comes again.
            if number not in self._journal.done:
                yield number, line

    async def _outcome(self, line: bytes | None) -> Outcome:
        try:
            asked = parse(line)
        except ApiError as error:
            await asyncio.sleep(0)  # others may go on, however many such lines there are
            self._summary.invalid += 1
            problem = Problem(error.code or "invalid_line", error.message)
            return Outcome("", custom_id_of(line), None, problem)
        response = await self._answerer.answer(asked)
        if response.status_code == 200:
            self._summary.succeeded += 1
            usage = _usage(response.body)
            self._summary.prompt_tokens += usage.prompt_tokens
            self._summary.completion_tokens += usage.completion_tokens
        else:
            self._summary.failed += 1
        return Outcome("", asked.custom_id, response, None)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


def _usage(body: msgspec.Raw) -> _Usage:
    """As far as an answer tells it."""
    try:
        return msgspec.json.decode(body, type=_Answer).usage or _Usage()
    except msgspec.DecodeError:
        return _Usage()
