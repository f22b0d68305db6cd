"""Asks the stages what a step costs them, where anything is left to choose by it.

Stages of one host share its cores and its memory's bandwidth. So they first measure at the same
time, each on its share of the cores, as many as there are cores for; then the first one alone
measures on all cores, which is how a stage works when the others wait for it. Stages that do not
share a host, or have devices of their own, measure once, all at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

from ppinfer.config import EngineConfig
from ppinfer.engine import profile_cache
from ppinfer.engine.cpu_time import REPEAT_ABOVE, Reading
from ppinfer.engine.supervisor import Supervisor
from ppinfer.messages import (
    DeviceInfo,
    ProfileRequest,
    ProfileResult,
    StageReady,
    StepCosts,
)
from ppinfer.models.config import ModelConfig
from ppinfer.schedule.pace import Measured, least
from ppinfer.version import __version__

SMALL_MODEL = 20_000_000
"""Parameters below which a step costs so little that measuring it is not worth the time."""

_SECONDS = 0.6
"""Time for each measurement, about; the weights for it are made in less."""

_MOST_ROWS = 512

_MOST_ATTEMPTS = 2

_METHOD = 5
"""Raised when stages measure in another way, so that what is cached is measured anew."""


def measure(
    supervisor: Supervisor,
    ready: Sequence[StageReady],
    devices: Sequence[DeviceInfo],
    model: ModelConfig,
    dtype: str,
    config: EngineConfig,
) -> Measured | None:
    """What the stages measured, now or in an earlier start like this one.

    While other programs keep the cores busy it is measured again, and if that was no better not
    kept: the next start measures anew.

    ``None`` where nothing is left to choose, the model is too small to bother, or a stage has no
    memory to measure with.
    """
    if model.total_parameters < SMALL_MODEL or is_settled(config):
        return None
    share_host = shares_host(ready, devices)
    first = ready[0]
    at_once = min(len(ready), max(1, first.cores // first.threads)) if share_host else len(ready)
    in_turn = share_host and config.threads is None and first.threads < first.cores
    rows = 1 << (min(config.max_sequences, _MOST_ROWS) - 1).bit_length()
    kinds = [
        (device.name, device.description, stage.cores, stage.threads, stage.software)
        for stage, device in zip(ready, devices, strict=True)
    ]
    # Where all have the same table, one of them stands for any number of stages.
    kept = 1 if share_host else len(ready)
    key = profile_cache.key_of(
        {
            "ppinfer": __version__,
            "method": _METHOD,
            "model": _shape(model),
            "dtype": dtype,
            "block_size": config.block_size,
            "rows": rows,
            "stages": list(dict.fromkeys(kinds)) if share_host else kinds,
            "at_once": at_once,
            "in_turn": in_turn,
            "share_host": share_host,
        }
    )
    if (known := profile_cache.load(key, kept)) is not None:
        return _of_all(known, len(ready))

    def ask(stages: Sequence[int], threads: Callable[[StageReady], int]) -> list[StepCosts]:
        """Their tables, or none at all where one of them has no memory to measure with."""
        for stage in stages:
            supervisor.send(
                stage,
                ProfileRequest(
                    model=msgspec.msgpack.encode(model),
                    dtype=dtype,
                    device=devices[stage].name,
                    block_size=config.block_size,
                    threads=threads(ready[stage]),
                    max_rows=rows,
                    seconds=_SECONDS,
                ),
            )
        results = supervisor.gather(ProfileResult, config.timeout, "measuring a step", None, stages)
        costs = [result.costs for result in results if result.costs is not None]
        return costs if len(costs) == len(results) else []

    def ask_all() -> Measured | None:
        together = ask(range(at_once), lambda stage: stage.threads)
        alone = ask([0], lambda stage: stage.cores) if in_turn and together else []
        if not together or (in_turn and not alone):
            return None
        if share_host:
            together = [least(together)]
        return Measured(tuple(together), tuple(alone), first.cores if share_host else 0)

    pids = [os.getpid(), *filter(None, supervisor.pids)]
    knows_all = None not in supervisor.pids  # else stages elsewhere would count as others
    for _ in range(_MOST_ATTEMPTS):
        before = Reading.now(pids)
        measured = ask_all()
        others, stolen = Reading.now(pids).shares_since(before)
        if measured is None:
            return None
        if others + stolen <= REPEAT_ABOVE or not knows_all:
            profile_cache.save(key, measured)
            break
    assert measured is not None
    return _of_all(measured, len(ready))


def _of_all(measured: Measured, num_stages: int) -> Measured:
    """The tables of so many stages, which may be one for all."""
    if len(measured.side_by_side) == num_stages:
        return measured
    return Measured(
        measured.side_by_side * num_stages, measured.in_turn * num_stages, measured.cores
    )


def is_settled(config: EngineConfig) -> bool:
    """Whether the user chose everything that a measurement would."""
    return (
        (config.partition != "auto" or config.pp_size == 1)
        and config.num_micro_batches is not None
        and config.max_prefill_tokens is not None
    )


def shares_host(ready: Sequence[StageReady], devices: Sequence[DeviceInfo]) -> bool:
    """Whether all stages compute on the cores of one host."""
    return all(
        device.name == "cpu" and stage.local_size == len(ready)
        for stage, device in zip(ready, devices, strict=True)
    )


def _shape(model: ModelConfig) -> ModelConfig:
    """The model without what makes no difference to the time of a step."""
    return msgspec.structs.replace(
        model,
        architecture="",
        rms_norm_eps=0.0,
        eos_token_ids=(),
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        dtype="",
    )
