"""How long a step takes, predicted: what micro-batches are balanced and prompts are cut by.

A small model, fitted once to what a stage measured before the run: so the same run is planned the
same way twice. In seconds of all stages together; only ratios of them are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ppinfer.messages import StepCosts
from ppinfer.schedule.pace import Curve


@dataclass(frozen=True)
class StepModel:
    """
    Attributes:
        rows: what does not depend on context, at so many tokens.
        head: norm, head and draw, at so many sequences that get a token.
        prefill_context: for each token of a prompt and each token before it.
        decode_context: for each token that a decoding sequence has.
    """

    rows: Curve
    head: Curve
    prefill_context: float = 0.0
    decode_context: float = 0.0

    @classmethod
    def fit(cls, costs: StepCosts, num_layers: int) -> StepModel:
        """From the times of one layer; what context costs is taken out of the rest."""
        decode, prefill = Curve(costs.decode), Curve(costs.prefill)
        seconds = {
            rows: took - costs.decode_context * rows * costs.context for rows, took in decode.points
        }
        most = max(seconds)
        for rows, took in prefill.points:
            if rows > most:
                seconds[rows] = took - costs.prefill_context * rows * rows / 2
        least = min(took for _, took in decode.points) / 2  # what is left where noise took more
        return cls(
            Curve(tuple((n, num_layers * max(took, least)) for n, took in sorted(seconds.items()))),
            Curve(costs.head),
            num_layers * costs.prefill_context,
            num_layers * costs.decode_context,
        )

    def decode_seconds(self, sequences: float, context: float) -> float:
        """A step that gives each of so many sequences a token; ``context`` is theirs together."""
        return self.rows.at(sequences) + self.head.at(sequences) + self.decode_context * context

    def prefill_seconds(self, beside: float, start: int, count: int) -> float:
        """What ``count`` tokens of a prompt from ``start`` on add to a step of ``beside`` rows."""
        linear = self.rows.at(beside + count) - (self.rows.at(beside) if beside else 0.0)
        return linear + self.prefill_context * count * (start + count / 2)

    def prefill_tokens(self, beside: float, start: int, most: int, seconds: float) -> int:
        """How many tokens of a prompt, up to ``most``, add no more than so many seconds."""
        if self.prefill_seconds(beside, start, most) <= seconds:
            return most
        low, high = 0, most  # there is time for low, and not for high
        while high - low > 1:
            middle = (low + high) // 2
            if self.prefill_seconds(beside, start, middle) <= seconds:
                low = middle
            else:
                high = middle
        return low

    @cached_property
    def context_weight(self) -> float:
        """What a token of context costs a decoding sequence, as a part of what a row costs."""
        (low, first), (high, last) = self.rows.points[0], self.rows.points[-1]
        a_row = (last - first) / max(high - low, 1)
        return self.decode_context / a_row if a_row > 0 else 0.0
