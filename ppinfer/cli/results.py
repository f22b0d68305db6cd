"""Shows the results of several prompts in their order, while they come in any order."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ppinfer.cli.prompts import Given
from ppinfer.cli.terminal import write

if TYPE_CHECKING:
    from ppinfer.request import (
        FinishReason,
        PromptTokenLogprobs,
        RequestDelta,
        TokenLogprobs,
    )

_TITLE_WIDTH = 70


@dataclass
class _Result:
    """What came of one prompt and was not shown yet."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PromptTokenLogprobs | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, delta: RequestDelta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.prompt_logprobs += delta.prompt_logprobs or ()
        self.finish_reason = delta.finish_reason


class Results:
    """Base of both ways to show results; ``num_shown`` are complete on standard output."""

    def __init__(self, given: Sequence[Given]) -> None:
        self._given = given
        self._results = [_Result() for _ in given]
        self.num_shown = 0
        self.num_finished = 0

    def add(self, delta: RequestDelta) -> None:
        """Take a piece in, and show what can be shown now."""
        self._results[delta.index].add(delta)
        if delta.finish_reason is not None:
            self.num_finished += 1
        while self.num_shown < len(self._given) and self._show(self._results[self.num_shown]):
            self._results[self.num_shown] = _Result()  # lets go of its text
            self.num_shown += 1

    def _show(self, result: _Result) -> bool:
        """Show more of the result whose turn it is; whether that was all of it."""
        raise NotImplementedError


class TextResults(Results):
    """Text as it comes: that of the first unfinished prompt at once, others when it is their turn.

    Several prompts get a title each.
    """

    def __init__(self, given: Sequence[Given]) -> None:
        super().__init__(given)
        self._last: str | None = None  # character shown of the current result; None before any

    def _show(self, result: _Result) -> bool:
        if self._last is None and len(self._given) > 1 and result.token_ids:
            write(self._title())
            self._last = ""
        if result.text:
            write(result.text)
            self._last = result.text[-1]
            result.text = ""
        if result.finish_reason is None:
            return False
        if self._last != "\n":
            write("\n")
        self._last = None
        return True

    def _title(self) -> str:
        title = self._given[self.num_shown].title
        if len(title) > _TITLE_WIDTH:
            title = title[: _TITLE_WIDTH - 1] + "…"
        blank = "\n" if self.num_shown else ""
        return f"{blank}==> {self.num_shown + 1}: {title} <==\n"


class JsonResults(Results):
    """One JSON object a line, when a result and all before it are complete."""

    def _show(self, result: _Result) -> bool:
        if result.finish_reason is None:
            return False
        value = {
            "index": self.num_shown,
            "prompt": self._given[self.num_shown].shown,
            "text": result.text,
            "token_ids": result.token_ids,
            "finish_reason": result.finish_reason,
        }
        if result.logprobs:
            value["logprobs"] = [_logprob_json(entry) for entry in result.logprobs]
        if result.prompt_logprobs:
            value["prompt_logprobs"] = [
                None if entry is None else _logprob_json(entry) | {"is_greedy": entry.is_greedy}
                for entry in result.prompt_logprobs
            ]
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return True


def _logprob_json(entry: TokenLogprobs) -> dict[str, Any]:
    top = [{"token_id": token, "logprob": _finite(value)} for token, value in entry.top.items()]
    return {"token_id": entry.token_id, "logprob": _finite(entry.logprob), "top": top}


def _finite(value: float) -> float | None:
    """JSON has no infinity; a probability of zero is null."""
    return value if math.isfinite(value) else None
