"""``ppinfer chat``: a conversation in the terminal, or one turn a line from a pipe."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppinfer.cli.options import Model, engine_options, make_params, sampling_options, takes
from ppinfer.cli.terminal import Bar, say, write
from ppinfer.cli.tracing import TraceFile, check_trace, traced
from ppinfer.errors import RequestError

if TYPE_CHECKING:
    from ppinfer.engine.engine import PPInferEngine
    from ppinfer.request import ChatMessage
    from ppinfer.sampling import SamplingParams

_MAX_TOKENS = 512
"""Answers may be longer than the continuation of a prompt is by default."""

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


@takes(sampling_options("logprobs", "prompt_logprobs", max_tokens=_MAX_TOKENS), engine_options())
def chat(
    model: Model,
    *,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instructions that the model keeps to.")
    ] = None,
    trace: TraceFile = None,
    sampling: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Talk with a model.

    /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer. From a pipe,
    every line is a turn.
    """
    params = make_params(sampling, max_tokens=_MAX_TOKENS)
    interactive = sys.stdin.isatty()
    check_trace(trace)

    from ppinfer.engine.engine import PPInferEngine

    with Bar() as bar, PPInferEngine(model, progress=bar.show, **settings) as engine:
        bar.clear()
        for note in engine.notes:
            say(f"note: {note}")
        if interactive:
            say(_HELP)
        with traced(engine, trace):
            _Conversation(engine, params, system, interactive).run()


class _Conversation:
    """Turns of the user and of the model, each answered with all before it as context.

    The engine's prefix cache keeps what the model has already read, so a turn costs only its own
    tokens.
    """

    def __init__(
        self,
        engine: PPInferEngine,
        params: SamplingParams,
        system: str | None,
        interactive: bool,
    ) -> None:
        self._engine = engine
        self._params = params
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
        except RequestError as error:
            if not self._interactive:
                raise
            # Too long, or refused by the template: the turn is taken back.
            self._messages.pop()
            say(f"error: {error}")
            return
        self._messages.append({"role": "assistant", "content": answer})

    def _answer(self) -> str:
        """Stream the answer, and return as much of it as came."""
        parts: list[str] = []
        reason = None
        try:
            with closing(self._engine.stream([self._messages], self._params)) as deltas:
                for delta in deltas:
                    parts.append(delta.text)
                    write(delta.text)
                    reason = delta.finish_reason
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            reason = "abort"
        if not (parts and parts[-1].endswith("\n")):
            write("\n")
        if reason == "length":
            self._remark("The answer was cut: raise --max-tokens, or /reset a full context.")
        return "".join(parts)

    def _remark(self, message: str) -> None:
        if self._interactive:
            say(message)
