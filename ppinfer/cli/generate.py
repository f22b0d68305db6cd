"""``ppinfer generate``: continue prompts."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ppinfer.cli.options import Model, engine_options, make_params, sampling_options, takes
from ppinfer.cli.prompts import collect
from ppinfer.cli.results import JsonResults, TextResults
from ppinfer.cli.terminal import Bar, refuse_usage, say
from ppinfer.cli.tracing import TraceFile, check_trace, traced


@takes(sampling_options(), engine_options())
def generate(
    model: Model,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="Texts to continue; without any, standard input gives one a line.",
            show_default=False,
        ),
    ] = None,
    *,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='A prompt a line; in a .jsonl file an object with "prompt" or "messages".',
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each text through the model's chat template.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, in the prompts' order.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, notes or figures.")
    ] = False,
    trace: TraceFile = None,
    sampling: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Continue one prompt or many.

    Answers are shown as they are made, in the prompts' order. Figures of the run go to standard
    error.
    """
    for name in ("logprobs", "prompt_logprobs"):
        if name in sampling and not as_json:
            option = name.replace("_", "-")
            raise refuse_usage(f"--{option} shows in JSON only; add --json.")
    given = collect(prompts or [], prompts_file, chat)
    if not given:
        raise refuse_usage("There is no prompt: give one, --prompts-file, or a pipe.")
    params = make_params(sampling)
    check_trace(trace)

    from ppinfer.engine.engine import PPInferEngine

    with (
        Bar(quiet) as bar,
        PPInferEngine(model, progress=bar.show, **settings) as engine,
    ):
        bar.clear()
        for note in () if quiet else engine.notes:
            say(f"note: {note}")
        with (
            traced(engine, trace, quiet),
            closing(engine.stream([item.prompt for item in given], params)) as deltas,
        ):
            results = JsonResults(given) if as_json else TextResults(given)
            # On a terminal, text that comes is a progress of its own.
            with_bar = len(given) > 1 and (as_json or not sys.stdout.isatty())
            for delta in deltas:
                if not with_bar:
                    results.add(delta)
                    continue
                with bar.paused() if delta.finish_reason is not None else nullcontext():
                    results.add(delta)
                bar.show("prompts", results.num_finished, len(given))
        bar.clear()
        if (
            results.num_shown and not quiet
        ):  # nothing is shown where torchrun lets another rank speak
            if engine.choices:
                say("chosen: " + " | ".join(engine.choices))
            say(engine.report().summary())
