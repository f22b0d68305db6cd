"""The text of an answer, as it comes, into what is said and what is called.

The grammar of ``tools`` has made sure how calls are written, so their fixed parts show them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from ppinfer.server import protocol
from ppinfer.server.protocol_tools import CalledFunction, FunctionDelta, ToolCall, ToolCallDelta
from ppinfer.server.tools import HEAD, MIDDLE, TAIL


@dataclass
class AnswerReader:
    """One answer. What could still turn out to be a part of a call is held back; blanks before one
    are no part of what is said.

    Attributes:
        calls: so far, the last one maybe incomplete.
    """

    calls: list[ToolCall] = field(default_factory=list)
    _awaited: str = HEAD  # the fixed part that ends what is read now
    _held: str = ""
    _blank: str = ""  # at the end of what was said so far

    def push(self, text: str) -> Iterator[str | ToolCallDelta]:
        """Parts of the content, and of calls."""
        self._held += text
        while True:
            before, found, after = self._held.partition(self._awaited)
            if not found:
                break
            self._held = after
            yield from self._next(before)
        if self._awaited != MIDDLE:  # a name is told whole
            length = len(self._held) - _overlap(self._held, self._awaited)
            text, self._held = self._held[:length], self._held[length:]
            yield from self._some(text)

    def finish(self) -> Iterator[str | ToolCallDelta]:
        """What was held back, now that no more comes. An unfinished name is no call."""
        if self._awaited == HEAD and not self.calls:
            text = self._blank + self._held
            self._blank = self._held = ""
            if text:
                yield text

    def reason(self, reason: protocol.FinishReason) -> protocol.FinishReason:
        """Why the answer ended, its calls considered."""
        is_whole = bool(self.calls) and self._awaited == HEAD
        return "tool_calls" if is_whole and reason == "stop" else reason

    def _next(self, before: str) -> Iterator[str | ToolCallDelta]:
        """``before`` was read up to the part that was awaited."""
        if self._awaited == MIDDLE:
            call = ToolCall(id=f"call_{secrets.token_hex(12)}", function=CalledFunction(before, ""))
            self.calls.append(call)
            self._awaited = TAIL
            yield ToolCallDelta(len(self.calls) - 1, FunctionDelta("", before), call.id, call.type)
            return
        yield from self._some(before)
        self._awaited = MIDDLE if self._awaited == HEAD else HEAD

    def _some(self, text: str) -> Iterator[str | ToolCallDelta]:
        if self._awaited == TAIL:
            if text:
                self.calls[-1].function.arguments += text
                yield ToolCallDelta(len(self.calls) - 1, FunctionDelta(text))
        elif not self.calls:  # between calls is nothing but blanks
            text = self._blank + text
            said = text.rstrip()
            self._blank = text[len(said) :]
            if said:
                yield said


def _overlap(text: str, part: str) -> int:
    """How much of the end of a text could be the beginning of a part."""
    longest = min(len(text), len(part) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(part[:n])), 0)
