"""Prompts that are scored: what is asked of the last stage, and when it is handed on."""

from __future__ import annotations

import pytest
from support.schedule_rig import Rig, make_request

from ppinfer.errors import StageError
from ppinfer.messages import PromptLogprobs, SampledToken, StepResult
from ppinfer.schedule.sequence import Sequence


def scores_asked(rig):
    return [(step.start, len(step.tokens), step.scores, step.sample) for plan in rig.pipeline.plans
            for step in plan.steps]  # fmt: skip


def test_every_row_is_asked_for_but_the_last():
    rig = Rig(max_prefill_tokens=4)
    rig.add(make_request(0, prompt_len=9, max_tokens=2, prompt_logprobs=0))
    rig.run()
    assert scores_asked(rig)[:4] == [
        (0, 4, 4, False), (4, 4, 4, False), (8, 1, 0, True), (9, 1, 0, True),
    ]  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_prompt_alone_ends_when_it_is_computed(length):
    rig = Rig(num_blocks=3)  # no room is kept for a token that is not drawn
    rig.add(make_request(0, prompt_len=length, max_tokens=0, prompt_logprobs=0))
    rig.run()
    assert scores_asked(rig) == [(0, length, length - 1, False)]
    assert (rig.outputs[0], rig.reasons[0], len(rig.scores[0])) == ([], "length", length - 1)


def test_a_cached_prefix_is_left_to_others():
    rig = Rig(block_size=4)
    for seq_id, params in enumerate(({}, {"prompt_logprobs": 0}, {}, {"prompt_logprobs": 0})):
        request = make_request(0, prompt_len=12, **params)
        object.__setattr__(request, "seq_id", seq_id)
        rig.add(request)
        rig.run()
    starts = [step.start for plan in rig.pipeline.plans if plan.new for step in plan.steps]
    assert starts == [0, 0, 8, 0]


def test_what_was_scored_is_not_asked_for_again():
    """Where a sequence is computed anew, from any point of its way."""
    request = make_request(0, prompt_len=10, prompt_logprobs=0)
    seq = Sequence(request, 9, 0, list(request.prompt_token_ids))
    assert seq.scores_in(0, 4) == 4
    seq.add_scores(4, PromptLogprobs(0, (-1.0,) * 4, (1,) * 4))
    assert [seq.scores_in(*part) for part in ((0, 3), (0, 6), (3, 20), (6, 8))] == [0, 2, 5, 2]
    assert seq.needs_scores
    assert seq.take_scores() is None
    seq.add_scores(4, PromptLogprobs(0, (-2.0,) * 4, (2,) * 4))  # once more
    assert [part.highest for part in seq.scores] == [(1,) * 4]
    seq.add_scores(10, PromptLogprobs(0, (-1.0,) * 5, (1,) * 5))
    assert not seq.needs_scores
    assert seq.scores_in(0, 20) == 0
    assert [len(part.logprobs) for part in seq.take_scores()] == [4, 5]
    assert seq.take_scores() is None


def test_an_answer_with_other_scores_is_refused():
    rig = Rig()
    rig.add(make_request(0, prompt_len=5, prompt_logprobs=0))
    plan = rig.schedule.next_plan()
    for prompts in ([], [PromptLogprobs(0, (-1.0,), (1,))], [PromptLogprobs(1, (0.0,) * 4, ())]):
        with pytest.raises(StageError, match="other prompt tokens"):
            rig.manager.commit(StepResult(plan.step_id, [SampledToken(0, 1)], prompts))
