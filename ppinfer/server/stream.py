"""Answers of one request on their way: several sequences of the engine as one flow of deltas.

Nothing here holds more than a few deltas: while the client does not read, nobody takes more from
the engine's streams. However a request ends, what is unfinished of it is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from ppinfer.request import FinishReason, RequestDelta, TokenLogprobs
from ppinfer.sampling import SamplingParams
from ppinfer.server import protocol
from ppinfer.server.backend import Engine, TokenStream
from ppinfer.server.errors import ApiError, unavailable

_AHEAD = 4
"""Deltas of one sequence that are held while others are being sent."""


class Job(NamedTuple):
    """One sequence to compute; answers are numbered in the order of jobs."""

    prompt_token_ids: Sequence[int]
    params: SamplingParams


class Answers:
    """The sequences of one request; a context manager that aborts them at its end.

    ``new_tokens`` are those that were handed out.
    """

    def __init__(
        self, engine: Engine, jobs: Sequence[Job], *, priority: int, salt: str, streamed: bool
    ) -> None:
        self._engine, self._jobs = engine, jobs
        self._priority, self._salt, self._streamed = priority, salt, streamed
        self._streams: list[TokenStream] = []
        self.new_tokens = 0

    @property
    def seq_ids(self) -> list[int]:
        """What the engine's state calls them."""
        return [stream.seq_id for stream in self._streams]

    @property
    def prompt_tokens(self) -> int:
        return sum(len(job.prompt_token_ids) for job in self._jobs)

    async def __aenter__(self) -> Answers:
        """Raises what the engine has against a job."""
        try:
            for ids, params in self._jobs:
                self._streams.append(
                    self._engine.stream(
                        ids,
                        params,
                        priority=self._priority,
                        salt=self._salt,
                        streamed=self._streamed,
                    )
                )
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for stream in self._streams:
            await stream.aclose()

    async def deltas(self) -> AsyncGenerator[tuple[int, RequestDelta], None]:
        """Every delta with the number of its answer, as they come.

        Close the iterator where it is not read to its end.
        """
        if len(self._streams) == 1:
            async for delta in self._streams[0]:
                self.new_tokens += len(delta.token_ids)
                yield 0, delta
            return
        queue: asyncio.Queue[tuple[int, RequestDelta | Exception]] = asyncio.Queue(
            _AHEAD * len(self._streams)
        )
        pumps = [
            asyncio.create_task(_pump(index, stream, queue))
            for index, stream in enumerate(self._streams)
        ]
        try:
            unfinished = len(pumps)
            while unfinished:
                index, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                unfinished -= item.finish_reason is not None
                self.new_tokens += len(item.token_ids)
                yield index, item
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    index: int,
    stream: TokenStream,
    queue: asyncio.Queue[tuple[int, RequestDelta | Exception]],
) -> None:
    try:
        async for delta in stream:
            await queue.put((index, delta))
    except Exception as error:  # for whoever reads
        await queue.put((index, error))


@dataclass
class Whole:
    """One answer, put together."""

    parts: list[str] = field(default_factory=list)
    num_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: protocol.FinishReason = "length"

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def add(self, delta: RequestDelta) -> None:
        self.parts.append(delta.text)
        self.num_tokens += len(delta.token_ids)
        self.logprobs.extend(delta.logprobs or ())
        if reason := finish_reason(delta.finish_reason):
            self.finish_reason = reason


def finish_reason(reason: FinishReason | None) -> protocol.FinishReason | None:
    """OpenAI has no word for an answer that was ended from outside: that is an error."""
    if reason == "abort":
        raise aborted()
    return reason


def aborted() -> ApiError:
    return unavailable("The request was ended before its answer was complete.", "aborted")


def usage(prompts: Sequence[Sequence[int]], new_tokens: int) -> protocol.Usage:
    """Of all answers together; a prompt with several answers counts once."""
    prompt_tokens = sum(map(len, prompts))
    return protocol.Usage(prompt_tokens, new_tokens, prompt_tokens + new_tokens)
