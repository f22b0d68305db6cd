"""The schedule at work: manager, schedule and fake pipeline, with every plan checked."""

from __future__ import annotations

from support.fake_pipeline import VOCABULARY, FakePipeline

from ppinfer.messages import StepPlan
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.generate import EvenSpread, GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.slot import STEPS_A_SLOT


class Rig:
    """Manager, schedule and fake pipeline, driven as the engine's driver does."""

    def __init__(
        self,
        *,
        slots=2,
        size=8,
        stages=2,
        num_blocks=512,
        block_size=4,
        max_prefill_tokens=512,
        prefix_caching=True,
        spread=None,
        steps=None,
        expected_output=None,
    ) -> None:
        """``expected_output`` is how long outputs are believed to be, from the start and for good;
        memory is promised for no more than that."""
        self.pool = BlockPool(num_blocks, block_size)
        self.manager = MicroBatchManager(slots, slots * size, self.pool, prefix_caching)
        if expected_output is not None:
            self.manager.memory.lengths = Fixed(expected_output)
        self.spread = spread or EvenSpread(slots)
        self.schedule = GenerateSchedule(self.manager, max_prefill_tokens, spread, steps)
        self.steps = steps
        self.pipeline = FakePipeline(stages, block_size)
        self.max_prefill_tokens = max_prefill_tokens
        self.outputs: dict[int, list[int]] = {}
        self.scores: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.known: dict[int, int] = {}  # tokens to be computed like a prompt
        self.num_preempted = 0

    def add(self, request: Request) -> None:
        self.manager.add(request)
        self.outputs[request.seq_id] = []
        self.known[request.seq_id] = -len(request.prompt_token_ids)  # until it is announced

    def fill(self) -> None:
        """Plan all that can be planned now."""
        while True:
            total = self._total()  # as the schedule sees it: a plan may make known prefixes free
            preempted = self.manager.num_preemptions
            plan = self.schedule.next_plan()
            if plan is None:
                break
            self.pipeline.submit(plan)
            self._check_plan(plan)
            if self.manager.num_preemptions == preempted:  # else others may have been let in
                self._check_share(plan, total)
        for slot in self.manager.slots:
            if not slot.in_flight:
                idle = any(s.num_unplanned and not self.manager.rests(s) for s in slot.sequences)
                assert not idle or self._someone_is_full(), "a slot with work is left idle"
            if not slot.in_flight and slot.index < self.spread.micro_batches_for(self._total()):
                waits = self.manager.num_admissible() and not self._someone_is_full()
                assert not waits, "a request waits beside an empty slot"
        assert self.manager.num_in_flight <= STEPS_A_SLOT * len(self.manager.slots)

    def tick(self) -> None:
        result = self.pipeline.tick()
        if result is not None:
            for update in self.manager.commit(result):
                if update.sampled is not None:
                    self.outputs[update.seq_id].append(update.sampled.token)
                if update.prompt is not None:
                    assert update.seq_id not in self.scores, "a prompt's scores come once"
                    found = [token for part in update.prompt for token in part.highest]
                    self.scores[update.seq_id] = found
                if update.finish_reason is not None:
                    self.reasons[update.seq_id] = update.finish_reason

    def run(self, ticks: int = 10_000) -> None:
        """To the end, which comes within ``ticks``."""
        for _ in range(ticks):
            self.fill()
            if not self.manager.num_in_flight:
                break
            self.tick()
        assert not self.manager.has_unfinished
        assert self.pool.num_used == 0

    def sizes(self) -> list[int]:
        return [len(slot.sequences) for slot in self.manager.slots]

    def _someone_is_full(self) -> bool:
        """Whether a slot, whose turn it may be, has all the steps in flight that it may have."""
        return any(s.in_flight == STEPS_A_SLOT and s.has_work for s in self.manager.slots)

    def _total(self) -> int:
        return self.manager.num_running + self.manager.num_admissible()

    def _check_share(self, plan: StepPlan, total: int) -> None:
        sizes = self.sizes()
        in_use = self.spread.micro_batches_for(total)
        if self.is_lent(plan):
            assert all(step.start < self.known[step.seq_id] for step in plan.steps)
            others = sum(map(bool, sizes))
            assert not sizes[plan.slot]
            assert others < self.spread.turns_for(in_use), "a step more than may be under way"
            return
        assert plan.slot < in_use
        if self.steps is None:  # else weights count, which grow
            assert sizes[plan.slot] <= -(-total // in_use), "no slot has more than its share"

    def is_lent(self, plan: StepPlan) -> bool:
        """Whether a plan that was just made computes prompts of other slots."""
        planned = {step.seq_id for step in plan.steps}
        homes = {seq.slot for seq in self.manager.running() if seq.seq_id in planned}
        assert plan.slot not in homes or len(homes) == 1, "a step is for its slot or for others"
        return plan.slot not in homes

    def _check_plan(self, plan: StepPlan) -> None:
        assert self.manager.num_running <= self.manager.max_sequences
        for new in plan.new:
            again = self.known[new.seq_id] > 0
            self.num_preempted += again
            self.known[new.seq_id] = new.prompt_len + len(self.outputs[new.seq_id])
        prompt_tokens = 0
        for step in plan.steps:
            is_prompt = step.start < self.known[step.seq_id]
            assert is_prompt or len(step.tokens) == 1
            prompt_tokens += is_prompt * len(step.tokens)
        assert prompt_tokens <= self.max_prefill_tokens


class Fixed:
    """A guess at the length of outputs that no output changes."""

    least = 0

    def __init__(self, expected: int) -> None:
        self.expected = expected

    def add(self, length: int) -> None:
        pass


def make_request(seq_id, prompt_len=5, max_tokens=4, stop_ids=(), **params):
    prompt = tuple((seq_id * 31 + i) % VOCABULARY for i in range(prompt_len))
    return Request(
        seq_id, prompt, SamplingParams(max_tokens=max_tokens, **params), frozenset(stop_ids)
    )
