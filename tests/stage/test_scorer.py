"""Prompt log-probabilities on the last stage: in slices, in chunks, over cuts, always the same."""

from __future__ import annotations

import pytest
import torch
from support.pipeline_in_threads import PipelineInThreads
from support.small_llama import CUTS, small_llama

from ppinfer.errors import StageError
from ppinfer.kernels.native import library
from ppinfer.messages import NewSequence, PromptLogprobs, SequenceStep, StepPlan
from ppinfer.sampling import SamplingParams
from ppinfer.stage import scorer
from ppinfer.stage.draw import log_probs
from ppinfer.stage.scorer import Scorer

VOCAB, HIDDEN = 50, 8
HEAD = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0))
PROMPT = tuple(i * 7 % VOCAB for i in range(12))


def new_sequence(seq_id: int, top: int | None, prompt: tuple[int, ...] = PROMPT) -> NewSequence:
    return NewSequence(seq_id, len(prompt), SamplingParams(prompt_logprobs=top), (), prompt)


class Head:
    """Logits of hidden states; remembers how many rows there were at once."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return hidden @ HEAD.T


@pytest.mark.parametrize("path", ["", "torch"])
def test_the_rows_that_are_asked_for_in_slices(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among rows that are not, of sequences that are scored and one that is not."""
    monkeypatch.setenv(library.VARIABLE, path)
    monkeypatch.setattr(scorer, "SLICE_BYTES", 4 * VOCAB * 4)
    library.choice.cache_clear()
    head = Head()
    made = Scorer(VOCAB, head)
    for sequence in (new_sequence(0, 3), new_sequence(1, None), new_sequence(2, 0)):
        made.add(sequence)
    steps = [
        SequenceStep(0, 2, list(PROMPT[2:9]), [], False, 5),  # not the first two
        SequenceStep(1, 12, [4], [], True),
        SequenceStep(2, 6, list(PROMPT[6:]), [], True, 5),  # nothing follows the last
    ]
    hidden = torch.randn(14, HIDDEN, generator=torch.Generator().manual_seed(1))
    try:
        first, second = made.score(StepPlan(0, 0, [], [], steps), hidden)
    finally:
        library.choice.cache_clear()
    assert head.rows == [4, 4, 2]
    for found, rows, tokens, top in (
        (first, range(2, 7), PROMPT[5:10], 3), (second, range(8, 13), PROMPT[7:12], 0),
    ):  # fmt: skip
        expected = [
            (*log_probs(hidden[row] @ HEAD.T, token, top), int((hidden[row] @ HEAD.T).argmax()))
            for row, token in zip(rows, tokens, strict=True)
        ]
        assert found.logprobs == pytest.approx([logprob for logprob, *_ in expected], abs=1e-5)
        assert found.highest == tuple(highest for *_, highest in expected)
        assert found.top_ids == sum((ids for _, ids, _, _ in expected), ())
        values = [value for _, _, values, _ in expected for value in values]
        assert found.top_logprobs == pytest.approx(values, abs=1e-5)
    made.remove(0)
    with pytest.raises(KeyError):
        made.score(StepPlan(0, 0, [], [], steps), hidden)


def test_logits_that_are_no_numbers_are_refused() -> None:
    made = Scorer(VOCAB, Head())
    made.add(new_sequence(0, 0))
    plan = StepPlan(0, 0, [], [], [SequenceStep(0, 0, list(PROMPT), [0], True, 11)])
    with pytest.raises(StageError, match="no numbers"):
        made.score(plan, torch.full((12, HIDDEN), torch.nan))


def test_cut_chunks_and_neighbours_change_no_bit() -> None:
    """And a token has the log-probability with which it was drawn."""
    prompts = [[(i * i + n) % 300 for i in range(n)] for n in (1, 2, 40, 17, 130, 64)]
    params = SamplingParams(max_tokens=3, logprobs=4, prompt_logprobs=4)
    expected: dict[int, list[PromptLogprobs]] = {}
    for ranges, slots, size, chunk in zip(
        CUTS, (1, 3, 7, 2), (1, 2, 3, 8), (512, 7, 16, 64), strict=True
    ):
        pipeline = PipelineInThreads(small_llama(), ranges)
        sizes = {"num_micro_batches": slots, "micro_batch_size": size, "max_prefill_tokens": chunk}
        outputs = pipeline.generate(prompts, params, **sizes)
        scores = dict(pipeline.scores)
        drawn = {seq_id: list(tokens) for seq_id, tokens in pipeline.sampled.items()}
        longer = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
        alone = SamplingParams(max_tokens=0, prompt_logprobs=4)
        assert pipeline.generate(longer, alone, first_seq_id=100, **sizes) == [[]] * len(prompts)
        pipeline.close()
        assert not pipeline.errors
        expected = expected or scores
        assert scores == expected
        for seq_id, tokens in drawn.items():
            found = pipeline.scores[100 + seq_id]
            assert found.logprobs[-3:] == tuple(token.logprob for token in tokens)
            assert found.highest[-3:] == tuple(token.token for token in tokens)
            assert found.top_logprobs[-12:] == sum((t.top_logprobs for t in tokens), ())
            assert found.logprobs[:-3] == scores[seq_id].logprobs
