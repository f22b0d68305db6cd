"""From a model and settings to a pipeline that stands: the start-up, in order, with its times.

spawn stages ──► they import torch ──────► load, side by side ──► allocate KV ──► run
read the checkpoint's header ─► cut it ─┘  build the tokenizer ┘

Where to cut it is measured first, if that is left to choose and not known from an earlier start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from ppinfer.config import EngineConfig
from ppinfer.engine.profile import measure
from ppinfer.engine.report import StageLayout
from ppinfer.engine.setup import (
    choose_comm,
    choose_devices,
    choose_dtype,
    count_blocks,
    cut_and_tune,
    receives_ahead,
)
from ppinfer.engine.source import ModelSource
from ppinfer.engine.supervisor import Supervisor
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import ConfigError, StageError
from ppinfer.messages import (
    CacheReady,
    CacheSetup,
    StageLoaded,
    StageReady,
    StageSetup,
)
from ppinfer.models.config import ModelConfig
from ppinfer.progress import Progress
from ppinfer.schedule.pace import Measured
from ppinfer.schedule.partition import StageRange
from ppinfer.schedule.slot import STEPS_A_SLOT
from ppinfer.schedule.tuning import Tuning
from ppinfer.version import __version__


@dataclass(slots=True)
class Pipeline:
    """What stands once every stage is ready.

    ``measured`` is what a step was found to take, where that was asked for. ``startup_seconds`` has
    one entry a part; parts of stages are those of the slowest.
    """

    config: ModelConfig
    dtype: str
    max_model_len: int
    num_blocks: int
    layouts: list[StageLayout]
    loaded: list[StageLoaded]
    tokenizer: Tokenizer | None
    eos_token_ids: tuple[int, ...]
    notes: list[str]
    tuning: Tuning
    measured: Measured | None = None
    startup_seconds: dict[str, float] = field(default_factory=dict)


class Timer:
    """Seconds of the parts of the start-up, by name, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def build_pipeline(
    supervisor: Supervisor, source: ModelSource, config: EngineConfig, progress: Progress
) -> Pipeline:
    """Bring up all stages. The caller closes the supervisor if this raises.

    Raises:
        PPInferError: the model, the settings, the memory or a stage is at fault; see ``errors``.
    """
    timer = Timer()
    progress("start stages", 0, config.pp_size)
    with timer.part("spawn processes"):
        supervisor.start(threads=config.threads, model_fd=source.model_fd)
    with timer.part("read header"):
        model = source.open()
    with timer.part("wait for stages"):
        ready = supervisor.gather(StageReady, config.timeout, "starting")
    _check_versions(ready)
    devices = choose_devices(ready, config.device)
    dtype, note = choose_dtype(config.dtype, model.dtype, devices)
    max_model_len = _max_model_len(config, model)
    with timer.part("measure a step"):
        measured = measure(supervisor, ready, devices, model, dtype, config)
    ranges, tuning = cut_and_tune(measured, model, dtype, ready, devices, config)
    comm = choose_comm(config.comm, config.pp_size, devices, supervisor.shares_memory)
    with timer.part("send set-up"):
        shares = source.stage_tensors(ranges)
        for stage, layers in enumerate(ranges):
            supervisor.send(
                stage,
                StageSetup(
                    stage=stage,
                    num_stages=config.pp_size,
                    first_layer=layers[0],
                    last_layer=layers[1],
                    model=msgspec.msgpack.encode(model),
                    tensors=shares[stage],
                    dtype=dtype,
                    device=devices[stage].name,
                    comm=comm,
                    generation=0,
                    store=supervisor.store,
                    block_size=config.block_size,
                    recv_ahead=receives_ahead(config, devices),
                    send_depth=STEPS_A_SLOT * max(config.micro_batches, tuning.num_slots) + 1,
                    max_step_tokens=tuning.max_prefill_tokens + config.max_sequences,
                    max_sequences=config.max_sequences,
                    timeout=config.timeout,
                    row_invariant=config.row_invariant,
                ),
            )
    with timer.part("build tokenizer"):
        tokenizer = source.tokenizer()
    done = 0

    def count(_: StageLoaded) -> None:
        nonlocal done
        done += 1
        progress("load weights", done, config.pp_size)

    progress("load weights", 0, config.pp_size)
    with timer.part("wait for weights"):
        loaded = supervisor.gather(StageLoaded, config.timeout, "loading", count)
    num_blocks = count_blocks(loaded, devices, config, max_model_len)
    with timer.part("allocate KV cache"):
        supervisor.broadcast(CacheSetup(num_blocks))
        supervisor.gather(CacheReady, config.timeout, "allocating its KV cache")
    timer.seconds["stage: import torch"] = max(stage.seconds for stage in ready)
    timer.seconds["stage: connect"] = max(stage.connect_seconds for stage in loaded)
    timer.seconds["stage: load"] = max(stage.load_seconds for stage in loaded)
    return Pipeline(
        config=model,
        dtype=dtype,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        layouts=_layouts(ranges, loaded, num_blocks),
        loaded=loaded,
        tokenizer=tokenizer,
        eos_token_ids=_eos_token_ids(model, tokenizer),
        notes=[
            *dict.fromkeys(filter(None, [note, *(stage.note for stage in loaded)])),
            *(tokenizer.notes if tokenizer is not None else ()),
        ],
        tuning=tuning,
        measured=measured,
        startup_seconds=timer.seconds,
    )


def _check_versions(ready: Sequence[StageReady]) -> None:
    for stage in ready:
        if stage.version != __version__:
            raise StageError(
                f"Stage {stage.stage} runs ppinfer {stage.version}, but the driver {__version__}; "
                "install the same version everywhere.",
                stage=stage.stage,
            )


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    if config.max_model_len is None:
        return model.max_position
    if config.max_model_len > model.max_position:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model was made for at most "
            f"{model.max_position} tokens."
        )
    return config.max_model_len


def _eos_token_ids(model: ModelConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The config's ends and the tokenizer's: fine-tunes often name the end of a turn only there."""
    more = () if tokenizer is None else tokenizer.eos_token_ids
    return tuple(sorted({*model.eos_token_ids, *more}))


def _layouts(
    ranges: Sequence[StageRange], loaded: Sequence[StageLoaded], num_blocks: int
) -> list[StageLayout]:
    return [
        StageLayout(
            first_layer=layers[0],
            last_layer=layers[1],
            weight_bytes=stage.weight_bytes,
            kv_cache_bytes=num_blocks * stage.block_bytes,
        )
        for layers, stage in zip(ranges, loaded, strict=True)
    ]
