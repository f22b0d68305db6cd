"""What a server of OpenAI's kind says in a stream, as far as a load tool cares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ppinfer.bench.serve.records import OK, RequestRecord
from ppinfer.bench.serve.sse import EventParser

_DONE = b"[DONE]"
_WHY_LENGTH = 200


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        if self.text or self.delta is None:
            return bool(self.text)
        delta = self.delta
        return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decode: Callable[[bytes], _Chunk] = msgspec.json.Decoder(_Chunk).decode


class AnswerError(Exception):
    """The server's answer is no good; ``args`` are the status and why."""


class AnswerReader:
    """Puts what a stream says into a request's record."""

    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._events = EventParser()
        self._is_done = False

    def feed(self, received: bytes, at: float) -> None:
        """Bytes that came ``at`` this time.

        Raises:
            AnswerError: the server reports an error, or this is no such stream.
        """
        try:
            for data in self._events.feed(received):
                if data.strip() == _DONE:
                    self._is_done = True
                elif not self._is_done:
                    self._take(_decode(data), at)
        except (ValueError, msgspec.DecodeError) as error:  # UnicodeDecodeError is a ValueError
            raise AnswerError("malformed", str(error)) from error

    def close(self) -> None:
        """The stream has ended. Raises ``AnswerError`` where it ended too soon."""
        record = self._record
        if not self._is_done and record.finish_reason is None:
            raise AnswerError("disconnected", "the stream ended in the middle of an answer")
        if not record.has_usage:
            record.output_tokens = len(record.chunks)
        record.status = OK

    def _take(self, chunk: _Chunk, at: float) -> None:
        record = self._record
        error = bytes(chunk.error)
        if error != b"null":
            raise AnswerError("error in stream", reason_in(error))
        choices = chunk.choices or ()
        if any(choice.has_text for choice in choices):
            record.chunks.append(at)
        for choice in choices:
            record.finish_reason = choice.finish_reason or record.finish_reason
        if chunk.usage is not None:
            record.has_usage = True
            record.input_tokens = chunk.usage.prompt_tokens or 0
            record.output_tokens = chunk.usage.completion_tokens or 0


def reason_in(body: bytes) -> str:
    """The message in an error's body, of whichever shape, short and in one line."""
    text = body.decode("utf-8", "replace")
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = text
    while isinstance(found, dict):
        found = next((found[k] for k in ("error", "message", "detail") if found.get(k)), text)
    return " ".join((found if isinstance(found, str) else text).split())[:_WHY_LENGTH]
