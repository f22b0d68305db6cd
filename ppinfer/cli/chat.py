"""``ppinfer chat``: a conversation in the terminal, or one turn a line from a pipe.

Its model is in an engine of this command, or in a server that is running (``chat_server``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppinfer.cli.options import engine_options, make_params, sampling_options, takes
from ppinfer.cli.terminal import Bar, refuse_usage, say, write
from ppinfer.cli.tracing import TraceFile, check_trace, traced
from ppinfer.errors import RequestError, ServerError

if TYPE_CHECKING:
    from ppinfer.request import ChatMessage
    from ppinfer.sampling import SamplingParams

    Answers = Callable[[list[ChatMessage], Callable[[str], None]], str | None]
    """Answers a conversation: hands on the text as it comes, and returns why it ended."""

_MAX_TOKENS = 512
"""Answers may be longer than the continuation of a prompt is by default."""

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


_SERVER = "Server"


@takes(
    sampling_options("logprobs", "prompt_logprobs", "grammar", max_tokens=_MAX_TOKENS),
    engine_options(),
)
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A folder, a .gguf file, a hub id, or demo.", show_default=False
        ),
    ] = None,
    *,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instructions that the model keeps to.")
    ] = None,
    trace: TraceFile = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Talk with a model of this OpenAI-compatible server.", rich_help_panel=_SERVER
        ),
    ] = None,
    served: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="The model's name there; not needed where there is only one.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="OPENAI_API_KEY", help="What the server lets in.", rich_help_panel=_SERVER
        ),
    ] = None,
    sampling: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Talk with a model: one that is loaded here, or with --url one of a running server.

    /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer. From a pipe,
    every line is a turn.
    """
    if (model is None) == (url is None):
        raise refuse_usage("Give either MODEL or --url.")
    if url is not None and (settings or trace is not None):
        raise refuse_usage("With --url, settings of a pipeline have no effect; leave them out.")
    if url is None and served is not None:
        raise refuse_usage("--model is a server's name for a model: it needs --url.")
    params = make_params(sampling, max_tokens=_MAX_TOKENS)
    interactive = sys.stdin.isatty()

    if url is not None:
        answering = _server_answers(url, served, api_key, params, sampling)
    else:
        assert model is not None
        check_trace(trace)
        answering = _engine_answers(model, params, settings, trace)
    with answering as answers:
        if interactive:
            say(_HELP)
        _Conversation(answers, system, interactive).run()


@contextmanager
def _engine_answers(
    model: str, params: SamplingParams, settings: dict[str, Any], trace: TraceFile
) -> Iterator[Answers]:
    """Its prefix cache keeps what the model has already read: a turn costs only its own tokens."""
    from ppinfer.engine.engine import PPInferEngine

    with Bar() as bar, PPInferEngine(model, progress=bar.show, **settings) as engine:
        bar.clear()
        for note in engine.notes:
            say(f"note: {note}")

        def answer(messages: list[ChatMessage], take: Callable[[str], None]) -> str | None:
            reason = None
            with closing(engine.stream([messages], params)) as deltas:
                for delta in deltas:
                    take(delta.text)
                    reason = delta.finish_reason
            return reason

        with traced(engine, trace):
            yield answer


def _server_answers(
    url: str,
    model: str | None,
    api_key: str | None,
    params: SamplingParams,
    sampling: Mapping[str, Any],
) -> AbstractContextManager[Answers]:
    from ppinfer.client.address import require_aiohttp, root_of

    require_aiohttp()
    from ppinfer.cli.chat_server import server_answers

    # Servers have defaults of their own: what is not said here is theirs, but for these two.
    names = sampling.keys() | {"max_tokens", "temperature"}
    fields = {name: getattr(params, name) for name in sorted(names)}
    return server_answers(root_of(url), model, api_key, fields)


class _Conversation:
    """Turns of the user and of the model, each answered with all before it as context."""

    def __init__(self, answers: Answers, system: str | None, interactive: bool) -> None:
        self._answers = answers
        self._start: list[ChatMessage] = []
        if system is not None:
            self._start = [{"role": "system", "content": system}]
        self._messages = list(self._start)
        self._interactive = interactive

    def run(self) -> None:
        while (turn := self._read()) is not None:
            command = turn.strip()
            if command in ("/exit", "/quit"):
                return
            if command == "/reset":
                self._messages = list(self._start)
                self._remark("The conversation is forgotten.")
            elif command.startswith("/") and self._interactive and " " not in command:
                self._remark(_HELP)
            elif command:
                self._take_turn(turn)

    def _read(self) -> str | None:
        """The user's next line, or ``None`` at the end."""
        if not self._interactive:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        import readline  # noqa: F401 - gives input() editing and a history

        while True:
            try:
                return input("> " if sys.stdout.isatty() else "")
            except EOFError:
                write("\n")
                return None
            except KeyboardInterrupt:
                write("\n")
                self._remark("Ctrl-D or /exit leaves.")

    def _take_turn(self, turn: str) -> None:
        self._messages.append({"role": "user", "content": turn})
        try:
            answer = self._answer()
        except (RequestError, ServerError) as error:
            if not self._interactive:
                raise
            # Too long, refused by the template, or a server is away: the turn is taken back.
            self._messages.pop()
            say(f"error: {error}")
            return
        self._messages.append({"role": "assistant", "content": answer})

    def _answer(self) -> str:
        """Write the answer as it comes, and return as much of it as came."""
        parts: list[str] = []

        def take(text: str) -> None:
            parts.append(text)
            write(text)

        try:
            reason = self._answers(self._messages, take)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            reason = "abort"
        except (RequestError, ServerError):
            if parts:
                write("\n")  # the error has a line of its own
            raise
        if not (parts and parts[-1].endswith("\n")):
            write("\n")
        if reason == "length":
            self._remark("The answer was cut: raise --max-tokens, or /reset a full context.")
        return "".join(parts)

    def _remark(self, message: str) -> None:
        if self._interactive:
            say(message)
