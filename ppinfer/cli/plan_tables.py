"""A plan for people: the answer, the pipeline, its stages, and the alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppinfer.bench.tables import Table, number, show
from ppinfer.cli.inspect import human_bytes
from ppinfer.planner.advice import answer, binding
from ppinfer.planner.assemble import Assembled
from ppinfer.planner.choice import Choice, Plan
from ppinfer.planner.outcome import Outcome, StageUse

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
        console.print(f"{unfit.words}: no. {unfit.reason}")


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
        ["stage", "device", "layers", "weights", "KV cache", "free", "busy", "waits"],
        labels=3,
    )
    pipeline = assembled.pipeline
    for index, (device, (first, last), memory, use) in enumerate(
        zip(assembled.devices, assembled.ranges, assembled.memory, outcome.stages, strict=True)
    ):
        kv = pipeline.num_blocks * memory.kv_block
        table.rows.append(
            [
                str(index),
                device.name,
                f"{first}-{last - 1}",
                human_bytes(memory.weights),
                human_bytes(kv),
                human_bytes(device.usable - memory.without_kv - kv),
                f"{use.busy_share:.1%}",
                _waits(use),
            ]
        )
    table.notes.append(f"Of the KV cache {outcome.kv_peak:.0%} is in use at most.")
    return table


def _waits(use: StageUse) -> str:
    """The causes that make at least half a percent, largest first."""
    shares = {
        "input": use.waits["wait_input"],
        "plan": use.waits["wait_plan"],
        "idle": use.waits["no request"],
        "ends": use.waits["ramp up"] + use.waits["drain"],
    }
    shown = sorted((cause for cause in shares if shares[cause] >= 0.005 * use.seconds),
                   key=lambda cause: -shares[cause])  # fmt: skip
    return ", ".join(f"{cause} {shares[cause] / use.seconds:.1%}" for cause in shown)


def thousands(count: int) -> str:
    return f"{count / 1000:,.0f}k" if count >= 10_000 else f"{count:,}"


def choice_table(plan: Plan) -> Table:
    table = Table(
        "Alternatives",
        ["what", "at once", "KV tokens", "tokens/s", "a device", "first s", "ms/token"],
    )
    for choice in sorted((plan.pipeline, *plan.others), key=lambda c: -c.throughput):
        outcome = choice.outcome
        table.rows.append(
            [
                choice.words,
                str(choice.copies * choice.config.max_sequences),
                thousands(choice.copies * choice.kv_tokens),
                number(choice.throughput),
                number(choice.throughput / choice.num_devices),
                number(outcome.first_token.p50),
                number(outcome.between_tokens.p50 * 1e3),
            ]
        )
    return table
