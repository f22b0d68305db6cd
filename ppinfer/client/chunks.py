"""What a server of OpenAI's kind says in a stream, as far as we care."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ppinfer.client.sse import EventParser

_DONE = b"[DONE]"
_WHY_LENGTH = 200


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    """Of a chat, with ``delta``, or of a completion, with ``text``."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        if self.text or self.delta is None:
            return bool(self.text)
        delta = self.delta
        return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decode: Callable[[bytes], Chunk] = msgspec.json.Decoder(Chunk).decode


class AnswerError(Exception):
    """The server's answer is no good.

    Attributes:
        status: in a word or two, such as ``HTTP 503`` or ``disconnected``.
        why: more, for people; may be empty.
    """

    def __init__(self, status: str, why: str) -> None:
        super().__init__(status, why)
        self.status, self.why = status, why


class ChunkReader:
    """Bytes of a stream in, its chunks out.

    Some servers end a stream with ``[DONE]``, others with a choice's ``finish_reason``; one that
    had neither was cut.
    """

    def __init__(self) -> None:
        self._events = EventParser()
        self._is_done = self._is_finished = False

    def feed(self, received: bytes) -> Iterator[Chunk]:
        """The chunks that these bytes complete.

        Raises:
            AnswerError: the server reports an error, or this is no such stream.
        """
        try:
            for data in self._events.feed(received):
                if data.strip() == _DONE:
                    self._is_done = True
                elif not self._is_done:
                    yield self._checked(_decode(data))
        except (ValueError, msgspec.DecodeError) as error:  # UnicodeDecodeError is a ValueError
            raise AnswerError("malformed", str(error)) from error

    def close(self) -> None:
        """The stream has ended. Raises ``AnswerError`` where it ended too soon."""
        if not (self._is_done or self._is_finished):
            raise AnswerError("disconnected", "the stream ended in the middle of an answer")

    def _checked(self, chunk: Chunk) -> Chunk:
        error = bytes(chunk.error)
        if error != b"null":
            raise AnswerError("error in stream", reason_in(error))
        if any(choice.finish_reason for choice in chunk.choices or ()):
            self._is_finished = True
        return chunk


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
