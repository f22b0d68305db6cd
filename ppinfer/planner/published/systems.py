"""In which order the two systems took their steps, as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ppinfer.planner.hardware import Link
from ppinfer.planner.published.eager import EagerCost
from ppinfer.planner.published.figures import Cell
from ppinfer.planner.shape import ITEM_BYTES
from ppinfer.planner.work import StepWork


def hugging_face_seconds(cell: Cell, whole: EagerCost) -> float:
    """One device at a time: all layers and the head for each token, and the prompts' logits all."""
    prefill = StepWork.prefill(cell.batch, cell.prompt)

    def decode(number: int) -> float:
        work = StepWork.decode(cell.batch, cell.prompt + number)
        return whole.layers_seconds(work) + whole.head_seconds(cell.batch)

    return (
        whole.layers_seconds(prefill)
        + whole.head_seconds(prefill.tokens)
        + _linear_sum(decode, 1, cell.new)
    )


def pipeline_seconds(
    cell: Cell,
    stages: Sequence[EagerCost],
    link: Link,
    *,
    all_logits: bool = True,
    head_first: bool = True,
) -> float:
    """Rounds of as many micro-batches as stages, each round drained before the next begins.

    Every stage exchanges hidden states with its neighbours after each step, so all go in step, and
    a step lasts as long as the slowest stage's. The head is on the first stage, to which hidden
    states come back: there it comes before the micro-batch's next token.

    Args:
        all_logits: of the prompts' every row, not only of those that a token is drawn from.
        head_first: otherwise the head is on the last stage, where it follows the layers.
    """
    last = len(stages) - 1
    count = len(stages)  # micro-batches of a round
    size = cell.micro_batch
    row_bytes = cell.model.hidden_size * ITEM_BYTES[cell.dtype]

    def head(stage: EagerCost, number: int) -> float:
        return stage.head_seconds(size * cell.prompt if all_logits and number == 0 else size)

    def step(index: int, number: int) -> float:
        """A stage's step for the token of that number; 0 is drawn from the prompts."""
        stage, seconds = stages[index], 0.0
        if head_first and index == 0 and number > 0:
            seconds += head(stage, number - 1)
        if number < cell.new:
            work = (
                StepWork.decode(size, cell.prompt + number)
                if number
                else StepWork.prefill(size, cell.prompt)
            )
            seconds += stage.layers_seconds(work) + link.seconds(work.tokens * row_bytes)
            if not head_first and index == last:
                seconds += head(stage, number)
        return seconds

    def tick(time: int) -> float:
        """Every stage takes the step that the stage before it took a tick ago."""
        steps = (cell.new + 1) * count  # the last ones are the head's alone
        return max(
            step(index, (time - index) // count)
            for index in range(count)
            if 0 <= time - index < steps
        )

    end = cell.new * count
    steady = min(2 * count, end)  # from here to the end all stages decode
    a_round = (
        sum(tick(time) for time in range(steady))
        + _linear_sum(tick, steady, end)
        + sum(tick(time) for time in range(end, end + count))
    )
    return cell.batch // (size * count) * a_round


def _linear_sum(seconds: Callable[[int], float], first: int, end: int) -> float:
    """Sum over ``range(first, end)`` of what grows with its argument as the context does."""
    return (end - first) * (seconds(first) + seconds(end - 1)) / 2 if end > first else 0.0
