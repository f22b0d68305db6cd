"""A plan in plain words: should there be a pipeline at all, and what binds it."""

from __future__ import annotations

from ppinfer.planner.choice import Choice, Plan

_LEVEL = 1.03
"""Throughputs whose ratio is below this are called equal."""

_CAUSES = {
    "ramp up": "filling the pipeline",
    "drain": "draining it",
    "no request": "want of requests",
    "wait_plan": "waiting for plans",
    "wait_input": "waiting for the stage before",
}


def answer(plan: Plan) -> str:
    """Whether to pipeline, in one or two sentences with the figures that say so."""
    pipeline = plan.pipeline
    devices = pipeline.assembled.devices
    if len(devices) == 1:
        return f"There is one device, and {plan.question.model.name} fits on it: no pipeline."
    alone = [choice for choice in plan.others if len(choice.assembled.devices) == 1]
    if not alone:
        return _needed(plan)
    copies = max(alone, key=lambda choice: choice.throughput)
    gain = pipeline.throughput / copies.throughput
    what = f"{copies.words} ({_rate(copies)})"
    best = plan.best
    if best.num_devices < pipeline.num_devices:
        return f"No: {best.words} ({_rate(best)}) beats a pipeline of all ({_rate(pipeline)})."
    if gain > _LEVEL:
        words = (
            f"Yes: the model fits on one device, but a pipeline of {len(devices)} makes "
            f"{_rate(pipeline)}, {gain:.2f} times as much as {what}"
        )
        at_once = copies.copies * copies.config.max_sequences
        if pipeline.config.max_sequences > at_once:
            words += (
                f": it holds the weights once, so that {pipeline.config.max_sequences} sequences "
                f"run at once instead of {at_once}"
            )
        return words + "."
    if gain > 1 / _LEVEL:
        return (
            f"It makes no difference: a pipeline makes {_rate(pipeline)}, {what}. "
            "Copies are simpler and give each request its tokens sooner."
        )
    return (
        f"No: each device holds the model, and {what} make more than the pipeline "
        f"({_rate(pipeline)}), with a token every {_ms(copies)} against {_ms(pipeline)}."
    )


def _needed(plan: Plan) -> str:
    model, best = plan.question.model.name, plan.best
    fewest = min(len(choice.assembled.devices) for choice in (plan.pipeline, *plan.others))
    words = (
        f"Yes: {model} in {plan.question.dtype} does not fit on fewer than {fewest} of these "
        "devices."
    )
    if best is not plan.pipeline and best.throughput > plan.pipeline.throughput * _LEVEL:
        words += (
            f" Best is {best.words}: {_rate(best)}, against {_rate(plan.pipeline)} of one pipeline "
            f"of {len(plan.pipeline.assembled.devices)}."
        )
    else:
        words += f" All {plan.pipeline.num_devices} as one pipeline make {_rate(plan.pipeline)}."
    return words


def binding(choice: Choice) -> str:
    """What the pipeline's time goes to, where it does not compute."""
    outcome = choice.outcome
    shares = [stage.busy_share for stage in outcome.stages]
    words = f"stages compute {min(shares):.0%}"
    if max(shares) - min(shares) >= 0.01:
        words += f" to {max(shares):.0%}"
    words += " of the time"
    lost: dict[str, float] = {}
    for stage in outcome.stages:
        for cause, seconds in stage.waits.items():
            if cause in _CAUSES:
                share = seconds / stage.seconds / len(outcome.stages)
                lost[cause] = lost.get(cause, 0.0) + share
    largest = sorted((cause for cause in lost if lost[cause] >= 0.01), key=lambda c: -lost[c])
    if largest:
        parts = ", ".join(f"{lost[cause]:.0%} {_CAUSES[cause]}" for cause in largest)
        words += f"; the rest on average: {parts}"
    return words


def _rate(choice: Choice) -> str:
    return f"{choice.throughput:,.0f} tokens/s"


def _ms(choice: Choice) -> str:
    return f"{choice.outcome.between_tokens.p50 * 1e3:.3g} ms"
