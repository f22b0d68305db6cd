"""A plan for people: the answer, the pipeline, its stages, and the alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppinfer.bench.tables import Table, number, percent, show
from ppinfer.cli.inspect import human_bytes
from ppinfer.planner.advice import answer, binding
from ppinfer.planner.assemble import Assembled
from ppinfer.planner.outcome import Outcome
from ppinfer.planner.plan import Choice, Plan

if TYPE_CHECKING:
    from rich.console import Console


def show_plan(plan: Plan, console: Console) -> None:
    console.print(answer(plan), style="bold")
    console.print()
    for line in pipeline_lines(plan.pipeline):
        console.print(line)
    tables = [stage_table(plan.pipeline.assembled, plan.pipeline.outcome)]
    if plan.others:
        tables.append(choice_table(plan))
    show(tables, console)
    for unfit in plan.unfit:
        console.print(f"{unfit.words}: {unfit.reason}")


def pipeline_lines(choice: Choice) -> list[str]:
    """What is chosen and what to expect, a line each."""
    tuning, outcome = choice.assembled.pipeline.tuning, choice.outcome
    batches = tuning.micro_batches[-1]
    most = -(-choice.config.max_sequences // batches)
    plural = "micro-batch" if batches == 1 else "micro-batches"
    layers = "+".join(str(last - first) for first, last in choice.assembled.ranges)
    return [
        f"{choice.words}: layers {layers}, {batches} {plural} of up to {most}, "
        f"{tuning.max_prefill_tokens} prompt tokens a step, room for {choice.kv_tokens:,} tokens",
        expectation(outcome),
        binding(choice),
    ]


def expectation(outcome: Outcome) -> str:
    first, between = outcome.first_token, outcome.between_tokens
    words = (
        f"predicted: {number(outcome.throughput)} output tokens/s over {outcome.seconds:.3g} s; "
        f"first token after {number(first.p50)} s (p99 {number(first.p99)})"
    )
    if between.p50:
        words += (
            f", then one every {number(between.p50 * 1e3)} ms (p99 {number(between.p99 * 1e3)})"
        )
    if outcome.preemptions:
        words += f"; {outcome.preemptions} times a sequence gave way for want of KV cache"
    return words


def stage_table(assembled: Assembled, outcome: Outcome) -> Table:
    table = Table(
        "Stages",
        ["stage", "device", "layers", "weights", "KV cache", "in use", "beside", "free", "busy",
         "waits: input", "plan", "ends"],
        labels=2,
    )  # fmt: skip
    pipeline = assembled.pipeline
    for index, (device, (first, last), memory, use) in enumerate(
        zip(assembled.devices, assembled.ranges, assembled.memory, outcome.stages, strict=True)
    ):
        kv = pipeline.num_blocks * memory.kv_block
        waits = {cause: seconds / use.seconds for cause, seconds in use.waits.items()}
        table.rows.append(
            [
                str(index),
                device.name,
                f"{first}-{last - 1}",
                human_bytes(memory.weights),
                human_bytes(kv),
                percent(outcome.kv_peak),
                human_bytes(memory.without_kv - memory.weights),
                human_bytes(device.usable - memory.without_kv - kv),
                f"{use.busy_share:.1%}",
                f"{waits['wait_input']:.1%}",
                f"{waits['wait_plan'] + waits['no request']:.1%}",
                f"{waits['ramp up'] + waits['drain']:.1%}",
            ]
        )
    return table


def choice_table(plan: Plan) -> Table:
    table = Table(
        "Alternatives",
        ["what", "layers", "at once", "micro-batches", "KV tokens", "tokens/s", "a device",
         "first token s", "ms a token"],
    )  # fmt: skip
    for choice in sorted((plan.pipeline, *plan.others), key=lambda c: -c.throughput):
        outcome, tuning = choice.outcome, choice.assembled.pipeline.tuning
        ranges = choice.assembled.ranges
        counts = [str(last - first) for first, last in ranges]
        table.rows.append(
            [
                choice.words,
                "+".join(counts) if len(counts) <= 8 else f"{counts[0]}+…+{counts[-1]}",
                str(choice.copies * choice.config.max_sequences),
                str(tuning.micro_batches[-1]),
                f"{choice.copies * choice.kv_tokens:,}",
                number(choice.throughput),
                number(choice.throughput / choice.num_devices),
                number(outcome.first_token.p50),
                number(outcome.between_tokens.p50 * 1e3),
            ]
        )
    return table
