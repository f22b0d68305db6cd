"""A streamed answer becomes a request's record."""

from __future__ import annotations

import time

from ppinfer.bench.serve.records import OK, RequestRecord
from ppinfer.bench.serve.target import Target
from ppinfer.client.chunks import AnswerError, Chunk, ChunkReader
from ppinfer.client.http import Client


async def ask(
    client: Client, target: Target, body: bytes, record: RequestRecord, start: float
) -> None:
    """Send a request and take its answer into ``record``; whatever fails becomes its status.

    Args:
        start: the ``perf_counter`` that the record's times count from.
    """
    reader = AnswerReader(record)
    record.sent = time.perf_counter() - start
    try:
        await client.post_stream(
            target.path, body, lambda received: reader.feed(received, time.perf_counter() - start)
        )
        reader.close()
    except AnswerError as problem:
        record.status, record.why = problem.status, problem.why
    record.ended = time.perf_counter() - start


class AnswerReader:
    """Puts what a stream says into a request's record."""

    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._chunks = ChunkReader()

    def feed(self, received: bytes, at: float) -> None:
        """Bytes that came ``at`` this time. Raises ``AnswerError`` as the chunks' reader does."""
        for chunk in self._chunks.feed(received):
            self._take(chunk, at)

    def close(self) -> None:
        """The stream has ended. Raises ``AnswerError`` where it ended too soon."""
        self._chunks.close()
        record = self._record
        if not record.has_usage:
            record.output_tokens = len(record.chunks)
        record.status = OK

    def _take(self, chunk: Chunk, at: float) -> None:
        record = self._record
        choices = chunk.choices or ()
        if any(choice.has_text for choice in choices):
            record.chunks.append(at)
        for choice in choices:
            record.finish_reason = choice.finish_reason or record.finish_reason
        if chunk.usage is not None:
            record.has_usage = True
            record.input_tokens = chunk.usage.prompt_tokens or 0
            record.output_tokens = chunk.usage.completion_tokens or 0
