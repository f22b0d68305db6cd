"""Which devices, which split, how many micro-batches: candidates are simulated, the best is taken.

Where to cut the model is the engine's own tuner's choice (``schedule/tuning.py``), given modelled
tables in place of measured ones. Numbers of micro-batches and chunk sizes are tried in simulation,
each with the whole load. Beside the pipeline of all devices stand its alternatives: fewer devices,
another cut, another order, and several smaller pipelines side by side that share the requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ppinfer.config import EngineConfig
from ppinfer.errors import CapacityError, ConfigError
from ppinfer.planner.assemble import Assembled, assemble
from ppinfer.planner.choice import Choice, Plan, Question, Unfit
from ppinfer.planner.hardware import Device, Link
from ppinfer.planner.shape import ITEM_BYTES
from ppinfer.planner.simulate import simulate
from ppinfer.progress import Progress, no_progress
from ppinfer.schedule.partition import StageRange
from ppinfer.schedule.tuning import PREFILL_CHUNKS

MOST_SEQUENCES = 512
"""That run at once in a pipeline, unless somebody asks for more."""

_MOST_MOVED = 8
"""Stages up to which layers are moved one by one."""

_GAIN = 1.01
"""What a candidate must be better by than one that was tried before it."""


def make_plan(
    question: Question,
    devices: Sequence[Device],
    links: Sequence[Link],
    progress: Progress = no_progress,
) -> Plan:
    """Find the best pipeline of these devices, in this order, and its alternatives.

    Args:
        links: from each device to the next.

    Raises:
        ConfigError: the devices or settings do not go with the model.
        CapacityError: the model does not fit on all of the devices.
    """
    ways = list(_alternatives(question, devices, links))
    progress("simulate", 0, 1 + len(ways))
    try:
        pipeline = best_pipeline(question, devices, links)
    except CapacityError as error:
        raise CapacityError(_too_little(question, devices)) from error
    others: list[Choice] = []
    unfit: list[Unfit] = []
    for done, (words, copies, some, between, settings) in enumerate(ways, 1):
        progress("simulate", done, 1 + len(ways))
        try:
            found = best_pipeline(question, some, between, words, copies, settings)
        except CapacityError:
            unfit.append(Unfit(words, _too_little(question, some)))
            continue
        except ConfigError as error:
            unfit.append(Unfit(words, str(error)))
            continue
        if found.assembled.ranges != pipeline.assembled.ranges or some != list(devices):
            others.append(found)
    others.sort(key=lambda choice: -choice.throughput)
    return Plan(question, pipeline, tuple(others), tuple(unfit))


def _too_little(question: Question, devices: Sequence[Device]) -> str:
    model, dtype = question.model, question.dtype
    weights = model.total_parameters * ITEM_BYTES[dtype]
    usable = sum(device.usable for device in devices)
    counted = [
        f"{list(devices).count(device)} x {device.name}" for device in dict.fromkeys(devices)
    ]
    return (
        f"{model.name} in {dtype} does not fit: its weights are {weights / 1e9:.3g} GB, and "
        f"{' and '.join(counted)} have {usable / 1e9:.3g} GB for them, a KV cache and what a step "
        "needs; use more devices, larger ones, or a smaller dtype."
    )


def best_pipeline(
    question: Question,
    devices: Sequence[Device],
    links: Sequence[Link],
    words: str = "",
    copies: int = 1,
    settings: Sequence[tuple[str, object]] = (),
) -> Choice:
    """The pipeline of these devices with the micro-batches and chunks that simulate best.

    Raises:
        ConfigError, CapacityError: as for ``make_plan``.
    """
    arrivals = question.arrivals[::copies]
    given = dict(question.settings) | dict(settings)
    config = EngineConfig.from_settings({"pp_size": len(devices), **given})
    if config.max_num_seqs is None:
        config = replace(config, max_num_seqs=min(len(arrivals), MOST_SEQUENCES))
        fitting = _sequences_that_fit(question, devices, links, config)
        config = replace(config, max_num_seqs=max(1, min(config.max_sequences, fitting)))

    def attempt(tried: EngineConfig) -> Choice:
        assembled = _assemble(question, devices, links, tried)
        return Choice(
            words=words or _counted(len(devices), "stage"),
            copies=copies,
            assembled=assembled,
            config=tried,
            outcome=simulate(assembled.pipeline, arrivals),
        )

    best = attempt(config)
    if config.num_micro_batches is None:
        numbers = _numbers(config)
        best = _better(best, (attempt(replace(config, num_micro_batches=m)) for m in numbers))
    if config.max_prefill_tokens is None:
        so_far = best.config
        chunks = PREFILL_CHUNKS
        best = _better(best, (attempt(replace(so_far, max_prefill_tokens=c)) for c in chunks))
    if config.partition == "auto" and len(devices) > 1:
        so_far, cuts = best.config, _cuts(best.assembled.ranges)
        best = _better(best, (attempt(replace(so_far, partition=cut)) for cut in cuts))
    return best


def _better(best: Choice, candidates: Iterator[Choice]) -> Choice:
    while (candidate := _next_that_fits(candidates)) is not None:
        if candidate.throughput > best.throughput * _GAIN:
            best = candidate
    return best


def _next_that_fits(candidates: Iterator[Choice]) -> Choice | None:
    try:
        return next(candidates, None)
    except CapacityError:
        return None


def _cuts(ranges: Sequence[StageRange]) -> list[tuple[int, ...]]:
    """Others to try: an even one, and those where one neighbour gives the other a layer.

    The tuner cuts for decoding alone; how much of a load are prompts, only a simulation knows.
    """
    counts = [last - first for first, last in ranges]
    even, more = divmod(sum(counts), len(counts))
    found = [tuple(even + (index < more) for index in range(len(counts)))]
    if len(counts) <= _MOST_MOVED:
        for one in range(len(counts) - 1):
            for step in (1, -1):
                moved = list(counts)
                moved[one] += step
                moved[one + 1] -= step
                if min(moved) > 0:
                    found.append(tuple(moved))
    return [cut for cut in dict.fromkeys(found) if cut != tuple(counts)]


def _numbers(config: EngineConfig) -> list[int]:
    """Of micro-batches, that are worth a simulation."""
    pp = config.pp_size
    numbers = {1, max(1, pp // 2), pp, pp + 1, pp + pp // 2, 2 * pp}
    return sorted(number for number in numbers if number <= config.max_sequences)


def _assemble(
    question: Question, devices: Sequence[Device], links: Sequence[Link], config: EngineConfig
) -> Assembled:
    return assemble(
        question.model,
        devices,
        links,
        question.dtype,
        config,
        context=question.typical_context,
        efficiency=question.efficiency,
    )


def _sequences_that_fit(
    question: Question, devices: Sequence[Device], links: Sequence[Link], config: EngineConfig
) -> int:
    """Of full length, at once."""
    pipeline = _assemble(question, devices, links, config).pipeline
    return pipeline.num_blocks // -(-question.context // pipeline.block_size)


def _alternatives(
    question: Question, devices: Sequence[Device], links: Sequence[Link]
) -> Iterator[tuple[str, int, list[Device], list[Link], tuple[tuple[str, object], ...]]]:
    """In words, how many copies of which devices with which links, and settings of their own."""
    number = len(devices)
    if number == 1:
        return
    chosen = dict(question.settings)
    if "partition" not in chosen:
        words = f"{_counted(number, 'stage')}, layers divided evenly"
        yield words, 1, list(devices), list(links), (("partition", "even"),)
    equal = len({device.name for device in devices}) == 1
    if not equal:
        words = f"{_counted(number, 'stage')} in reverse order"
        yield words, 1, list(reversed(devices)), list(reversed(links)), ()
        for device in dict.fromkeys(devices):
            yield f"one {device.name} alone", 1, [device], [], ()
        return
    if "partition" in chosen:
        return
    for stages in range(number - 1, 0, -1):
        some, between = list(devices[:stages]), list(links[: stages - 1])
        if number % stages == 0 and number // stages <= len(question.arrivals):
            copies = number // stages
            yield f"{copies} x {_counted(stages, 'stage')} side by side", copies, some, between, ()
        if stages & (stages - 1) == 0 or number <= 8:
            yield f"{_counted(stages, 'stage')} only", 1, some, between, ()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
