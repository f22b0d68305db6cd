"""Questions put to every stage, and their answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

AnswerT = TypeVar("AnswerT")


@dataclass(slots=True, eq=False)
class Round(Generic[AnswerT]):
    """One question. ``answers`` fills as they come; times are nanoseconds, monotonic.

    Attributes:
        heard: when each stage's answer came.
    """

    num_stages: int
    then: Callable[[Round[AnswerT]], None] | None
    asked: int = field(default_factory=time.perf_counter_ns)
    answers: dict[int, AnswerT] = field(default_factory=dict)
    heard: dict[int, int] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return len(self.answers) == self.num_stages


class Rounds(Generic[AnswerT]):
    """Rounds of one kind of question. A stage answers them in the order of asking, so an answer
    belongs to the oldest round that lacks it."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._open: deque[Round[AnswerT]] = deque()

    def begin(self, then: Callable[[Round[AnswerT]], None] | None = None) -> Round[AnswerT]:
        """Expect one answer more of every stage; ``then`` is called when all are there."""
        self._open.append(Round(self._num_stages, then))
        return self._open[-1]

    def take(self, stage: int, answer: AnswerT) -> None:
        for one in self._open:
            if stage not in one.answers:
                one.answers[stage] = answer
                one.heard[stage] = time.perf_counter_ns()
                break
        while self._open and self._open[0].is_complete:
            done = self._open.popleft()
            if done.then is not None:
                done.then(done)

    def unanswered(self) -> tuple[float, int] | None:
        """When the oldest open question was asked (monotonic seconds), and a stage that owes it."""
        if not self._open:
            return None
        oldest = self._open[0]
        return oldest.asked / 1e9, min(set(range(self._num_stages)) - oldest.answers.keys())

    def clear(self) -> None:
        """No answer comes any more."""
        self._open.clear()
