"""``ppinfer generate``: continue prompts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppinfer.cli.options import Model, engine_options, make_params, sampling_options, takes
from ppinfer.cli.prompts import Given, collect
from ppinfer.cli.terminal import Bar, refuse_usage, say, write

if TYPE_CHECKING:
    from ppinfer.request import FinishReason, RequestDelta, TokenLogprobs

_TITLE_WIDTH = 70


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
    sampling: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Continue one prompt or many.

    A single answer is shown as it is made; several come in the prompts' order. Figures of the run
    go to standard error.
    """
    if "logprobs" in sampling and not as_json:
        raise refuse_usage("--logprobs shows in JSON only; add --json.")
    given = collect(prompts or [], prompts_file, chat)
    if not given:
        raise refuse_usage("There is no prompt: give one, --prompts-file, or a pipe.")
    params = make_params(sampling)

    from ppinfer.engine.engine import PPInferEngine

    with (
        Bar(quiet) as bar,
        PPInferEngine(model, progress=bar.show, **settings) as engine,
    ):
        bar.clear()
        for note in () if quiet else engine.notes:
            say(f"note: {note}")
        with closing(engine.stream([item.prompt for item in given], params)) as deltas:
            if len(given) == 1 and not as_json:
                shown = _show_one(deltas)
            else:
                shown = _show_all(deltas, given, as_json, bar)
        bar.clear()
        if shown and not quiet:  # nothing is shown where torchrun lets another rank speak
            say(engine.report().summary())


@dataclass
class _Result:
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, delta: RequestDelta) -> None:
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.finish_reason = delta.finish_reason

    def as_json(self, index: int, given: Given) -> str:
        value = {
            "index": index,
            "prompt": given.shown,
            "text": "".join(self.text),
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
        }
        if self.logprobs:
            value["logprobs"] = [_logprob_json(entry) for entry in self.logprobs]
        return json.dumps(value, ensure_ascii=False)


def _logprob_json(entry: TokenLogprobs) -> dict[str, Any]:
    top = [{"token_id": token, "logprob": _finite(value)} for token, value in entry.top.items()]
    return {"token_id": entry.token_id, "logprob": _finite(entry.logprob), "top": top}


def _finite(value: float) -> float | None:
    """JSON has no infinity; a probability of zero is null."""
    return value if math.isfinite(value) else None


def _show_one(deltas: Iterable[RequestDelta]) -> int:
    """Text as it comes, ended with a newline; how many results there were."""
    count, last = 0, ""
    for delta in deltas:
        count = 1
        if delta.text:
            write(delta.text)
            last = delta.text
    if count and not last.endswith("\n"):
        write("\n")
    return count


def _show_all(deltas: Iterable[RequestDelta], given: list[Given], as_json: bool, bar: Bar) -> int:
    """Every result once it and all before it are complete; how many there were."""
    results = [_Result() for _ in given]
    finished = shown = 0
    bar.show("prompts", 0, len(given))
    for delta in deltas:
        results[delta.index].add(delta)
        if delta.finish_reason is None:
            continue
        finished += 1
        bar.show("prompts", finished, len(given))
        first = shown
        while shown < len(given) and results[shown].finish_reason is not None:
            shown += 1
        if shown > first:
            with bar.paused():
                for index in range(first, shown):
                    _print(results[index], index, given[index], as_json)
                    results[index] = _Result(finish_reason="stop")  # lets go of its text
    return shown


def _print(result: _Result, index: int, given: Given, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(result.as_json(index, given) + "\n")
        sys.stdout.flush()
        return
    title = given.title
    if len(title) > _TITLE_WIDTH:
        title = title[: _TITLE_WIDTH - 1] + "…"
    text = "".join(result.text)
    blank = "\n" if index else ""
    write(f"{blank}==> {index + 1}: {title} <==\n{text}" + ("" if text.endswith("\n") else "\n"))
