"""Batch files, and somebody who answers requests without a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Raw

from ppinfer.batch.lines import Asked, Response
from ppinfer.batch.run import Summary, open_journal, run_batch, survey


def request(custom_id: str, **changes: Any) -> dict[str, Any]:
    """A line of a batch; its prompt is its own id."""
    body = {"prompt": custom_id, "max_tokens": 4}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    return line | changes


def write_batch(path: Path, lines: Sequence[Any]) -> Path:
    """What is no text is written as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def outcomes(path: Path) -> dict[int, dict[str, Any]]:
    """The lines of an output by the numbers of their requests; none may be there twice."""
    found: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        assert set(line) == {"id", "custom_id", "response", "error"}
        number = int(line["id"].removeprefix("batch_req_"))
        assert number not in found
        found[number] = line
    return found


class FakeAnswerer:
    """Says every prompt again.

    Attributes:
        asked: the prompts, as they came.
        slow: prompts whose answers come when no others are at work.
        fail_after: so many answers, and then this error.
        most_at_once: requests that were at work together.
    """

    def __init__(self, fail_after: tuple[int, Exception] | None = None) -> None:
        self.asked: list[str] = []
        self.slow: set[str] = set()
        self.fail_after = fail_after
        self.most_at_once = self._at_once = 0

    async def answer(self, asked: Asked) -> Response:
        prompt = json.loads(asked.body)["prompt"]
        self.asked.append(prompt)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(0.001)
        while prompt in self.slow and self._at_once > len(self.slow):
            await asyncio.sleep(0.001)
        self._at_once -= 1
        if self.fail_after is not None and len(self.asked) > self.fail_after[0]:
            raise self.fail_after[1]
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        status = 400 if prompt == "bad" else 200
        body = json.dumps({"text": prompt, "usage": usage}).encode()
        return Response(status, "req_1", Raw(body))


def run(
    source: Path, target: Path, answerer: FakeAnswerer | None = None, in_flight: int = 4
) -> Summary:
    """A whole run, as the command does it."""
    shown: list[tuple[float, float]] = []
    with open_journal(source, target) as journal:
        summary = survey(source, journal, lambda _, *figures: shown.append(figures))
        asyncio.run(
            run_batch(
                source, journal, answerer or FakeAnswerer(), summary, in_flight,
                lambda _, *figures: shown.append(figures),
            )
        )  # fmt: skip
        # What is known of the output stays small, however long it is.
        assert journal.done.num_stretches <= 1
    assert shown[-1] == (summary.requests, summary.requests)
    assert sorted(shown) == shown
    return summary
