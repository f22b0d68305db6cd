"""Carries out plans on one stage. It sees plans and tensors, never queues, sockets or requests."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import torch

from ppinfer.comm.stage_manager import PipelineStageManager
from ppinfer.errors import StageError
from ppinfer.kernels.attention import AttentionBatch
from ppinfer.messages import PromptLogprobs, SampledToken, StepPlan
from ppinfer.models.decoder import StageModel
from ppinfer.stage.kv_cache import KVCache
from ppinfer.stage.sampler import Sampler
from ppinfer.stage.scorer import Scorer


@dataclass(slots=True)
class _SequenceState:
    """A live sequence on this stage: its blocks, and how many of its tokens are in the cache."""

    blocks: array[int] = field(default_factory=lambda: array("i"))
    length: int = 0


@dataclass(slots=True)
class Step:
    """A plan made ready for the model."""

    plan: StepPlan
    batch: AttentionBatch


class StageRunner:
    def __init__(
        self,
        model: StageModel,
        cache: KVCache,
        manager: PipelineStageManager,
        *,
        block_size: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._cache = cache
        self._manager = manager
        self._block_size = block_size
        self._device = device
        self._sequences: dict[int, _SequenceState] = {}
        self._next_step = 0
        vocab_size = model.config.vocab_size
        self._sampler = Sampler(vocab_size) if manager.is_last else None
        self._scorer = Scorer(vocab_size, model.logits) if manager.is_last else None

    def begin(self, plan: StepPlan) -> Step:
        """Bring the sequences' state up to the plan.

        Raises:
            StageError: the plan does not follow from the ones before it.
        """
        if plan.step_id != self._next_step:
            raise self._refusal(f"step {plan.step_id} came where {self._next_step} was due")
        self._next_step += 1
        if plan.threads and plan.threads != torch.get_num_threads():
            torch.set_num_threads(plan.threads)
        for seq_id in plan.ended:
            self._sequences.pop(seq_id, None)
            if self._sampler is not None:
                self._sampler.remove(seq_id)
            if self._scorer is not None:
                self._scorer.remove(seq_id)
        for new in plan.new:
            self._sequences[new.seq_id] = _SequenceState()
            if self._sampler is not None:
                self._sampler.add(new)
            if self._scorer is not None:
                self._scorer.add(new)
        first_steps = {new.seq_id for new in plan.new}
        starts, lengths, tables = [], [], []
        for step in plan.steps:
            state = self._sequences.get(step.seq_id)
            if state is None:
                raise self._refusal(f"sequence {step.seq_id} was never announced")
            if step.start != state.length and step.seq_id not in first_steps:
                raise self._refusal(
                    f"sequence {step.seq_id} goes on at {step.start}, not at {state.length}"
                )
            state.blocks.extend(step.new_blocks)
            state.length = step.start + len(step.tokens)
            if len(state.blocks) * self._block_size < state.length:
                raise self._refusal(f"sequence {step.seq_id} has too few KV blocks")
            starts.append(step.start)
            lengths.append(len(step.tokens))
            if step.mask and len(step.mask) * 8 < self._model.config.vocab_size:
                raise self._refusal(f"the mask of sequence {step.seq_id} is too short")
            tables.append(state.blocks)
        batch = AttentionBatch.build(
            starts,
            lengths,
            tables,
            self._block_size,
            config=self._model.config,
            device=self._device,
        )
        return Step(plan, batch)

    def as_tensor(self, ids: list[int]) -> torch.Tensor:
        """Token ids (tokens,) on this stage's device."""
        return torch.tensor(ids, dtype=torch.int64, device=self._device)

    def forward(self, step: Step, x: torch.Tensor) -> torch.Tensor:
        """Hidden states ``(tokens, hidden_size)`` after this stage's layers.

        ``x`` is what the stage before sent, or token ids (tokens,) on the first stage.
        """
        hidden = self._model.forward(x, step.batch, self._cache.layers)
        if self._device.type == "cuda":
            # So that the clock sees when it is done, and not when it was begun.
            torch.cuda.current_stream(self._device).synchronize()
        return hidden

    def sample(self, step: Step, hidden: torch.Tensor) -> list[SampledToken]:
        """The new token of every sequence that the plan samples; last stage only."""
        assert self._sampler is not None
        rows, seq_ids, positions, masks = [], [], [], []
        end = 0
        for part in step.plan.steps:
            end += len(part.tokens)
            if part.sample:
                rows.append(end - 1)
                seq_ids.append(part.seq_id)
                positions.append(part.start + len(part.tokens))
                masks.append(part.mask)
        if not rows:
            return []
        if len(rows) < len(hidden):
            hidden = hidden[torch.tensor(rows, device=hidden.device)]
        logits = self._model.logits(hidden)
        return self._sampler.sample(logits, seq_ids, positions, masks)

    def score(self, step: Step, hidden: torch.Tensor) -> list[PromptLogprobs]:
        """How likely the prompts are that the plan scores; last stage only."""
        assert self._scorer is not None
        return self._scorer.score(step.plan, hidden)

    def _refusal(self, why: str) -> StageError:
        stage = self._manager.stage
        return StageError(f"Stage {stage} refused a plan: {why}.", stage=stage)
