"""The ids that the last stage draws, on their way to the first stage's next steps.

A plan that runs ahead of results has ``PENDING`` in place of a token that an earlier step draws.
The first stage knows from each plan how many ids will come of it, so it asks for them at once and
waits only when a step needs them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ppinfer.comm.transport import Inbox, Receive
from ppinfer.messages import PENDING, SampledToken, StepPlan


class TokenFeed:
    """The latest token of every live sequence, as the first stage learns of it.

    ``inbox`` is the link from the last stage; a stage that is first and last has none, and ``put``s
    what it draws. ``most_pending`` is the most steps that can be in flight: what was asked for
    before that many later steps has certainly come.
    """

    def __init__(self, inbox: Inbox | None, most_pending: int) -> None:
        self._inbox = inbox
        self._most_pending = most_pending
        self._pending: deque[tuple[list[int], Receive]] = deque()
        self._latest: dict[int, int] = {}

    def begin(self, plan: StepPlan) -> None:
        """Learn which sequences live. Of one that has ended a late token is dropped."""
        for seq_id in plan.ended:
            self._latest.pop(seq_id, None)
        for new in plan.new:
            self._latest[new.seq_id] = PENDING

    def expect(self, seq_ids: list[int]) -> None:
        """Ask for the tokens of a step that has been computed."""
        if self._inbox is None or not seq_ids:
            return
        self._pending.append((seq_ids, self._inbox.post((len(seq_ids),))))
        if len(self._pending) > self._most_pending:
            self._take()

    def put(self, tokens: Iterable[SampledToken]) -> None:
        for token in tokens:
            self._store(token.seq_id, token.token)

    def latest(self, seq_ids: Sequence[int]) -> list[int]:
        """The token that was drawn last for each of these, when it is here.

        Raises:
            StageError: it never came.
        """
        wanted = set(seq_ids)
        while any(not wanted.isdisjoint(ids) for ids, _ in self._pending):
            self._take()
        return [self._latest[seq_id] for seq_id in seq_ids]

    def _take(self) -> None:
        """Wait for the oldest step's ids; they come in the order of the steps."""
        seq_ids, receive = self._pending.popleft()
        for seq_id, token in zip(seq_ids, receive.wait().tolist(), strict=True):
            self._store(seq_id, token)

    def _store(self, seq_id: int, token: int) -> None:
        if seq_id in self._latest:
            self._latest[seq_id] = token
