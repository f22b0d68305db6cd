"""What is known of one request. No HTTP here."""

from __future__ import annotations

import msgspec

OK = "ok"
CUT_OFF = "cut off"
"""Neither answered nor failed: the run was ended."""


class RequestRecord(msgspec.Struct):
    """One request; times are seconds from its level's start.

    Attributes:
        intended: when it arrived; every latency counts from here, whenever it could be sent.
        sent: when it was sent, if it was.
        ended: when its answer was complete, or it failed.
        chunks: when each piece of the answer's text came.
        input_tokens: as the server counts, or what the prompt was made to have.
        output_tokens: as the server counts, or else the number of chunks.
        wanted_input: tokens the prompt was made to have, if that was up to us.
        wanted_output: tokens that were asked for.
        status: ``ok``, ``HTTP 503``, ``timeout``, …; ``why`` says more.
        has_usage: whether the server counted.
    """

    intended: float
    sent: float | None = None
    ended: float = 0.0
    chunks: list[float] = []
    input_tokens: int = 0
    output_tokens: int = 0
    wanted_input: int | None = None
    wanted_output: int = 0
    status: str = CUT_OFF
    why: str = ""
    finish_reason: str | None = None
    has_usage: bool = False

    @property
    def is_ok(self) -> bool:
        return self.status == OK

    @property
    def queue(self) -> float | None:
        return None if self.sent is None else self.sent - self.intended

    @property
    def ttft(self) -> float | None:
        return self.chunks[0] - self.intended if self.chunks else None

    @property
    def e2e(self) -> float:
        return self.ended - self.intended

    @property
    def gaps(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def tpot(self) -> float | None:
        """Mean seconds of an output token after the first."""
        if self.output_tokens < 2 or len(self.chunks) < 2:
            return None
        return (self.chunks[-1] - self.chunks[0]) / (self.output_tokens - 1)

    def measured(self) -> dict[str, float | None]:
        """By the names of an objective's limits."""
        longest = max(self.gaps, default=None)
        return {"ttft": self.ttft, "itl": longest, "tpot": self.tpot, "e2e": self.e2e}
