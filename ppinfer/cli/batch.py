"""``ppinfer batch``: a file of requests in, a file of answers out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppinfer.cli.options import engine_options, model_name, takes
from ppinfer.cli.terminal import Bar, refuse_usage, say
from ppinfer.config import EngineConfig

if TYPE_CHECKING:
    from ppinfer.batch.run import Answerer, Summary

_REMOTE_IN_FLIGHT = 64

_SERVER = "Server"


@takes(engine_options())
def batch(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN.jsonl", help="A request a line.", show_default=False),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.jsonl",
            help="A line for each, as they end; what is there already is not asked again.",
            show_default=False,
        ),
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A folder, a .gguf file, a hub id, or demo."),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="What requests call the model; may be given several times."
        ),
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(
            min=1, help="Requests at once; default: twice what runs at once, or 64 with --url."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask this OpenAI-compatible server instead of a model here.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="OPENAI_API_KEY", help="What the server lets in.", rich_help_panel=_SERVER
        ),
    ] = None,
    answer_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="For one answer.",
            rich_help_panel=_SERVER,
        ),
    ] = 600.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, notes or figures.")
    ] = False,
    settings: dict[str, Any],
) -> None:
    """Answer every request of a file, in OpenAI's batch format.

    Lines are read as they are needed, and answers written as they come. A run that was cut off,
    however that came, goes on where it was when it is started again.
    """
    if (model is None) == (url is None):
        raise refuse_usage("Give either --model or --url.")
    if url is not None and (settings or served_model_name):
        raise refuse_usage("With --url, settings of a model have no effect; leave them out.")
    at_once = in_flight or _REMOTE_IN_FLIGHT
    if model is not None:
        at_once = in_flight or 2 * EngineConfig.from_settings(settings).max_sequences

    import asyncio

    from ppinfer.batch.run import open_journal, run_batch, survey

    with Bar(quiet) as bar, open_journal(source, target) as journal:
        summary = survey(source, journal, bar.show)

        async def run() -> None:
            if model is not None:
                names = tuple(served_model_name or [model_name(model)])
                answering = _model(model, names, settings, bar, quiet)
            else:
                assert url is not None
                answering = _server(url, api_key, answer_timeout)
            async with answering as answerer:
                await run_batch(source, journal, answerer, summary, at_once, bar.show)

        try:
            if summary.done < summary.requests:
                asyncio.run(run())
        except BaseException:
            bar.clear()
            if not quiet:
                say(f"{_progress(summary)}; the same command goes on from there")
            raise
    if as_json:
        print(json.dumps(asdict(summary)))
    if not quiet:
        say(_figures(summary))


@asynccontextmanager
async def _model(
    model: str, names: tuple[str, ...], settings: dict[str, Any], bar: Bar, quiet: bool
) -> AsyncIterator[Answerer]:
    from ppinfer.batch.local import LocalAnswerer
    from ppinfer.engine.async_engine import AsyncPPInferEngine

    async with await AsyncPPInferEngine.create(model, progress=bar.show, **settings) as engine:
        bar.clear()
        for note in () if quiet else engine.info.notes:
            say(f"note: {note}")
        answerer = LocalAnswerer(engine, names)
        try:
            yield answerer
        finally:
            answerer.close()


@asynccontextmanager
async def _server(url: str, api_key: str | None, timeout: float) -> AsyncIterator[Answerer]:
    from ppinfer.client.address import require_aiohttp, root_of

    require_aiohttp()
    from ppinfer.batch.remote import RemoteAnswerer

    async with RemoteAnswerer(root_of(url), api_key, timeout) as answerer:
        yield answerer


def _progress(summary: Summary) -> str:
    return f"{summary.done:,} of {summary.requests:,} requests are done"


def _figures(summary: Summary) -> str:
    parts = [f"{summary.succeeded:,} requests answered"]
    for count, what in (
        (summary.failed, "refused or failed"),
        (summary.invalid, "no requests"),
        (summary.done_before, "done before"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    line = ", ".join(parts)
    if summary.completion_tokens:
        rate = summary.completion_tokens / summary.seconds
        line += (
            f" | {summary.prompt_tokens:,} prompt and {summary.completion_tokens:,} new tokens in "
            f"{summary.seconds:.1f} s = {rate:.1f} new tokens/s"
        )
    return line
