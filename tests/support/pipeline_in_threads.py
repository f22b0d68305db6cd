"""A whole pipeline inside one process: real models, caches, runners and loops, links in memory."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Sequence

import torch

from ppinfer.comm.links import Links
from ppinfer.comm.memory import MemoryLink
from ppinfer.comm.stage_manager import PipelineStageManager
from ppinfer.messages import (
    Message,
    PromptLogprobs,
    SampledToken,
    Shutdown,
    StageStats,
    StageTensors,
    StepResult,
    ToStage,
)
from ppinfer.models.config import ModelConfig
from ppinfer.models.decoder import StageModel
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.generate import GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.stage.kv_cache import KVCache
from ppinfer.stage.loop import StageLoop
from ppinfer.stage.runner import StageRunner

CPU = torch.device("cpu")


class PipelineInThreads:
    """Stages with dummy weights, cut at ``ranges``; ``generate`` is a driver without a socket.

    ``sampled`` and ``scores`` keep what came of each sequence, scores as if in one piece.
    """

    def __init__(
        self,
        config: ModelConfig,
        ranges: Sequence[tuple[int, int]],
        *,
        dtype: torch.dtype = torch.float32,
        num_blocks: int = 256,
        block_size: int = 16,
    ) -> None:
        self._block_size, self._num_blocks = block_size, num_blocks
        self.results: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.inboxes: list[queue.SimpleQueue[ToStage]] = []
        self.errors: list[BaseException] = []
        self.sampled: defaultdict[int, list[SampledToken]] = defaultdict(list)
        self.scores: dict[int, PromptLogprobs] = {}
        self._threads: list[threading.Thread] = []
        links = [MemoryLink(dtype) for _ in ranges[1:]]
        feed = MemoryLink(torch.int64) if len(ranges) > 1 else None
        for stage, (first, last) in enumerate(ranges):
            manager = PipelineStageManager(stage, len(ranges), first, last)
            model = StageModel(
                config, first, last,
                is_first=manager.is_first, is_last=manager.is_last, dtype=dtype, device=CPU,
            )  # fmt: skip
            model.load(StageTensors((), (), dummy=True))
            cache = KVCache(
                num_layers=last - first, num_blocks=num_blocks, num_kv_heads=config.num_kv_heads,
                block_size=block_size, head_dim=config.head_dim, dtype=dtype, device=CPU,
            )  # fmt: skip
            inbox: queue.SimpleQueue[ToStage] = queue.SimpleQueue()
            self.inboxes.append(inbox)
            loop = StageLoop(
                StageRunner(model, cache, manager, block_size=block_size, device=CPU),
                Links(
                    inbox=None if manager.is_first else links[stage - 1],
                    outbox=None if manager.is_last else links[stage],
                    token_inbox=feed if manager.is_first else None,
                    token_outbox=feed if manager.is_last else None,
                ),
                manager, inbox, self.results.put,
                hidden_size=config.hidden_size, recv_ahead=3, most_in_flight=20,
            )  # fmt: skip
            thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, loop: StageLoop) -> None:
        try:
            loop.run()
        except BaseException as error:
            self.errors.append(error)

    def send(self, message: ToStage) -> None:
        for inbox in self.inboxes:
            inbox.put(message)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        num_micro_batches: int = 2,
        micro_batch_size: int = 4,
        max_prefill_tokens: int = 512,
        first_seq_id: int = 0,
    ) -> list[list[int]]:
        pool = BlockPool(self._num_blocks, self._block_size)
        manager = MicroBatchManager(num_micro_batches, num_micro_batches * micro_batch_size, pool)
        schedule = GenerateSchedule(manager, max_prefill_tokens)
        manager._next_step = getattr(self, "_next_step", 0)
        for index, prompt in enumerate(prompts):
            manager.add(Request(first_seq_id + index, tuple(prompt), params))
        outputs: list[list[int]] = [[] for _ in prompts]
        while manager.has_unfinished:
            while (plan := schedule.next_plan()) is not None:
                self.send(plan)
            message = self.results.get(timeout=60)
            assert isinstance(message, StepResult)
            for update in manager.commit(message):
                if update.prompt is not None:
                    self.scores[update.seq_id] = in_one_piece(update.seq_id, update.prompt)
                if update.sampled is not None:
                    outputs[update.seq_id - first_seq_id].append(update.sampled.token)
                    self.sampled[update.seq_id].append(update.sampled)
        self._next_step = manager._next_step
        return outputs

    def take_stats(self) -> list[StageStats]:
        stats = [self.results.get(timeout=60) for _ in self.inboxes]
        assert all(isinstance(s, StageStats) for s in stats)
        return sorted(stats, key=lambda s: s.stage)  # type: ignore[attr-defined,return-value]

    def close(self) -> None:
        self.send(Shutdown())
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive()


def in_one_piece(seq_id: int, parts: Sequence[PromptLogprobs]) -> PromptLogprobs:
    names = ("logprobs", "highest", "top_ids", "top_logprobs")
    joined = [tuple(value for part in parts for value in getattr(part, name)) for name in names]
    return PromptLogprobs(seq_id, *joined)
