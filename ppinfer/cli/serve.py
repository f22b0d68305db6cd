"""``ppinfer serve``: OpenAI's API over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppinfer.cli.options import Model, engine_options, model_name, takes
from ppinfer.cli.terminal import Bar, refuse_usage, say
from ppinfer.config import EngineConfig, parse_bytes
from ppinfer.errors import ConfigError

if TYPE_CHECKING:
    from ppinfer.server.backend import Engine
    from ppinfer.server.settings import ServerSettings

_PANEL = "Server"


@takes(engine_options())
def serve(
    model: Model,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all.", rich_help_panel=_PANEL)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=_PANEL)
    ] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What requests call the model; may be given several times.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            envvar="PPINFER_API_KEY",
            help="Answer only requests with this key; may be given several times, one a tenant.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1,
            help="Sequences at work or waiting; more are told to come back.",
            rich_help_panel=_PANEL,
        ),
    ] = 1024,
    max_body_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one request.", rich_help_panel=_PANEL)
    ] = "16MiB",
    shutdown_timeout: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="For running requests, once the server is told to end.",
            rich_help_panel=_PANEL,
        ),
    ] = 30.0,
    settings: dict[str, Any],
) -> None:
    """Serve a model over HTTP, as OpenAI's API.

    SIGTERM or Ctrl-C lets running requests end; a second one ends at once.
    """
    if api_key and not all(api_key):
        raise refuse_usage("An API key must not be empty.")
    EngineConfig.from_settings(settings)
    try:
        from ppinfer.server.run import listen
        from ppinfer.server.settings import ServerSettings
    except ImportError as error:
        raise ConfigError("Serving needs more packages: pip install 'ppinfer[serve]'.") from error

    server = ServerSettings(
        model_names=tuple(served_model_name or [model_name(model)]),
        api_keys=tuple(api_key or ()),
        max_queue=max_queue,
        max_body_bytes=parse_bytes(max_body_size),
        shutdown_timeout=shutdown_timeout,
    )
    with listen(host, port) as listener:
        status = _run(model, server, listener, settings)
    if status:
        raise typer.Exit(status)


def _run(model: str, server: ServerSettings, listener: Any, settings: dict[str, Any]) -> int:
    import asyncio

    from ppinfer.engine.async_engine import AsyncPPInferEngine
    from ppinfer.server.run import serve

    host, port = listener.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host

    with Bar() as bar:

        async def create() -> Engine:
            engine: Engine = await AsyncPPInferEngine.create(model, progress=bar.show, **settings)
            return engine

        def ready(engine: Engine) -> None:
            bar.clear()
            for note in engine.info.notes:
                say(f"note: {note}")
            say(f"serving {server.model_names[0]} at http://{where}:{port}/v1")

        return asyncio.run(serve(server, listener, create, ready, say))
