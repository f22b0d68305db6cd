"""What a step costs on this stage, measured before the model is cut.

The real layers, cache and sampler with made-up weights, a few layers of them: enough that every
step finds its weights in memory and not in a processor's cache, as in a run. What would take too
long is left out; whoever reads the tables goes on in proportion.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from ppinfer.kernels.attention import AttentionBatch
from ppinfer.kernels.heap import returning_freed_memory
from ppinfer.messages import (
    Message,
    NewSequence,
    ProfileRequest,
    StageTensors,
    StepCosts,
)
from ppinfer.models.config import ModelConfig
from ppinfer.models.decoder import StageModel
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.pace import least
from ppinfer.stage.device import TORCH_DTYPES, free_bytes, take_up
from ppinfer.stage.kv_cache import KVCache, block_bytes
from ppinfer.stage.sampler import Sampler
from ppinfer.stage.stopwatch import Stopwatch

_LAYER_BYTES, _HEAD_BYTES, _CACHE_BYTES = 96 << 20, 128 << 20, 64 << 20
"""Layers and KV cache are each repeated up to so many bytes, and a larger head is measured in part:
more than a processor caches, and quickly made."""

_CONTEXT = 250
"""Tokens that each decoding sequence has already."""

_CHUNKS = (128, 512, 1024)
_FAR = 2048
"""A context whose attention is measured against a short one's: with so many sequences or tokens."""
_FAR_SEQUENCES, _FAR_CHUNK = 8, 64
_HEAD_ROWS = (1, 4, 16, 64)
_EMBED_ROWS = (1, 32, 512)

_MEMORY_SHARE = 0.5
"""Part of the free memory that may serve a measurement."""


class Profiler:
    """Holds the made-up weights; ``measure`` may be called for several numbers of threads."""

    def __init__(self, request: ProfileRequest) -> None:
        config = msgspec.msgpack.decode(request.model, type=ModelConfig)
        self._config = config
        self._device, self._dtype = torch.device(request.device), TORCH_DTYPES[request.dtype]
        self._block_size = request.block_size
        size = self._dtype.itemsize
        most = _HEAD_BYTES // (config.hidden_size * size)
        self._vocab_size = min(config.vocab_size, max(most, 1))
        self._num_layers = min(
            config.num_layers, -(-_LAYER_BYTES // (config.layer_parameters * size))
        )
        self._group = min(2, self._num_layers)  # what is done once a step weighs less than in one
        self._context = min(_CONTEXT, config.max_position - 1)
        self._num_blocks = self._count_blocks(request.max_rows)
        self._turns: Iterator[tuple[StageModel, KVCache]] = iter(())

    @property
    def _num_groups(self) -> int:
        return -(-self._num_layers // self._group)

    @property
    def num_bytes(self) -> int:
        """Memory that ``load`` and ``measure`` take, about."""
        head = self._vocab_size * self._config.hidden_size
        weights = self._num_layers * self._config.layer_parameters + 2 * head
        return weights * self._dtype.itemsize + self._num_layers * self._cache_bytes

    def load(self) -> None:
        """Make the weights up."""
        models = [self._model(is_last=i == 0) for i in range(self._num_groups)]
        self._last = models[0]
        self._turns = itertools.cycle([(model, self._cache()) for model in models])

    @torch.inference_mode()
    def measure(self, threads: int, max_rows: int, seconds: float) -> StepCosts:
        """What a step's parts take, up to ``max_rows`` sequences, in about so many seconds.

        Everything is measured twice, some time apart: what disturbs one is over by the other.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return least([self._measure(threads, max_rows, seconds / 2) for _ in range(2)])
        finally:
            torch.set_num_threads(before)

    def _measure(self, threads: int, max_rows: int, seconds: float) -> StepCosts:
        config, group, watch = self._config, self._group, Stopwatch(self._device)
        rows = [2**i for i in range((max_rows - 1).bit_length() + 1)]
        chunks = [chunk for chunk in _CHUNKS if chunk < config.max_position] or [1]
        head_rows = sorted({n for n in (*_HEAD_ROWS, rows[-1]) if n <= rows[-1]})
        part_of_head = self._vocab_size / config.vocab_size
        return StepCosts(
            threads=threads,
            decode=watch.curve(_ends_first(rows), self._decode, group, 0.4 * seconds),
            prefill=watch.curve(chunks, self._prefill, group, 0.3 * seconds),
            head=watch.curve(_ends_first(head_rows), self._head, part_of_head, 0.2 * seconds),
            embed=watch.curve(_EMBED_ROWS, self._embed, 1, seconds),
            prepare=watch.curve(rows, self._prepare, 1, seconds),
            context=self._context,
            decode_context=self._slope(watch, _FAR_SEQUENCES, 1),
            prefill_context=self._slope(watch, 1, _FAR_CHUNK),
        )

    def _slope(self, watch: Stopwatch, sequences: int, tokens: int) -> float:
        """What a layer's attention takes for each pair of a token computed and one before it."""
        far = min(_FAR, self._config.max_position - tokens)
        near = min(_FAR_CHUNK, far // 2)
        if near < 1:
            return 0.0

        def part(start: int) -> Callable[[], object]:
            batch = self._batch([start] * sequences, [tokens] * sequences)
            return self._layers(batch, sequences * tokens)

        for start in (near, far):  # a difference suffers most from what is made or read once
            run = part(start)
            for _ in range(self._num_groups):
                run()
        (_, short), (_, long) = watch.curve((near, far), part, self._group, 0.0)
        return max(0.0, long - short) / ((far - near) * sequences * tokens)

    # ------------------------------------------------------------ the parts

    def _decode(self, rows: int) -> Callable[[], object]:
        return self._layers(self._decode_batch(rows), rows)

    def _prepare(self, rows: int) -> Callable[[], object]:
        return lambda: self._decode_batch(rows)

    def _prefill(self, tokens: int) -> Callable[[], object]:
        return self._layers(self._batch([0], [tokens]), tokens)

    def _layers(self, batch: AttentionBatch, num_tokens: int) -> Callable[[], object]:
        """A step of the next few layers: those that the processor has not seen for longest."""
        x = self._random(num_tokens, self._config.hidden_size)

        def step() -> None:
            model, cache = next(self._turns)
            model.forward(x, batch, cache.layers)

        return step

    def _head(self, rows: int) -> Callable[[], object]:
        x = self._random(rows, self._config.hidden_size)
        sampler = Sampler(self._vocab_size)
        for seq_id in range(rows):
            sampler.add(NewSequence(seq_id, 1, SamplingParams()))
        positions = [1] * rows
        return lambda: sampler.sample(self._last.logits(x), range(rows), positions)

    def _embed(self, rows: int) -> Callable[[], object]:
        table = self._random(min(self._config.vocab_size, 4096), self._config.hidden_size)
        ids = torch.randint(len(table), (rows,), device=self._device)
        return lambda: functional.embedding(ids, table)

    # ------------------------------------------------------------ what is measured

    def _model(self, is_last: bool) -> StageModel:
        """Layers out of the middle of a model, or its end with the head."""
        last = 1 + self._group
        total = last if is_last else last + 1
        config = msgspec.structs.replace(
            self._config,
            num_layers=total,
            windows=tuple(itertools.islice(itertools.cycle(self._config.windows), total)),
            vocab_size=self._vocab_size,
        )
        model = StageModel(
            config,
            1,
            last,
            is_first=False,
            is_last=is_last,
            dtype=self._dtype,
            device=self._device,
        )
        model.load(StageTensors((), (), dummy=True))
        return model

    def _count_blocks(self, max_rows: int) -> int:
        """Enough for the largest step, or as many as are no longer cached by the processor."""
        config = self._config
        self._block_bytes = block_bytes(
            1, config.num_kv_heads, self._block_size, config.head_dim, self._dtype
        )
        needed = max(max_rows * self._blocks_for(self._context + 1), self._blocks_for(_CHUNKS[-1]))
        return min(needed, max(64, _CACHE_BYTES // (self._num_layers * self._block_bytes)))

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    @property
    def _cache_bytes(self) -> int:
        return self._num_blocks * self._block_bytes

    def _cache(self) -> KVCache:
        config = self._config
        cache = KVCache(
            num_layers=self._group,
            num_blocks=self._num_blocks,
            num_kv_heads=config.num_kv_heads,
            block_size=self._block_size,
            head_dim=config.head_dim,
            dtype=self._dtype,
            device=self._device,
        )
        for pools in cache.layers:
            for pool in pools:
                pool.fill_(0.5)  # pages that were never written would all be one
        return cache

    def _decode_batch(self, rows: int) -> AttentionBatch:
        return self._batch([self._context] * rows, [1] * rows)

    def _batch(self, starts: list[int], lengths: list[int]) -> AttentionBatch:
        """A step; where its blocks exceed the cache, several sequences share them."""
        blocks = itertools.cycle(range(self._num_blocks))
        tables = [
            list(itertools.islice(blocks, self._blocks_for(start + length)))
            for start, length in zip(starts, lengths, strict=True)
        ]
        return AttentionBatch.build(
            starts, lengths, tables, self._block_size, config=self._config, device=self._device
        )

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self._dtype).to(self._device)


def _ends_first(rows: list[int]) -> list[int]:
    """Time need not grow as rows do, so the ends say most about what lies between them."""
    return [rows[0], rows[-1], *reversed(rows[1:-1])]


def answer_requests(
    request: Message,
    local_size: int,
    answer: Callable[[StepCosts | None], None],
    next_message: Callable[[], Message],
) -> Message:
    """Answer one request after the other; returns the first message that is none.

    The answer is ``None`` where this stage's share of free memory has no room for a measurement.
    Afterwards the memory goes back to the system, and does not count as the stage's.
    """
    assert isinstance(request, ProfileRequest)
    device = torch.device(request.device)
    take_up(device)
    profiler = Profiler(request)
    fits = profiler.num_bytes <= _MEMORY_SHARE * free_bytes(device, local_size)
    if fits:
        profiler.load()
    message: Message = request
    while isinstance(message, ProfileRequest):
        wanted = (message.threads, message.max_rows, message.seconds)
        answer(profiler.measure(*wanted) if fits else None)
        message = next_message()
    with returning_freed_memory():
        del profiler
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError):  # Linux: forget the highest resident size so far
        Path("/proc/self/clear_refs").write_text("5")
    return message
