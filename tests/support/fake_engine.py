"""A fake engine, and commands run in this process: no stages, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.traces import two_stages
from typer.testing import CliRunner, Result

from ppinfer.cli import app
from ppinfer.config import EngineConfig
from ppinfer.engine.tracing import Tracing
from ppinfer.errors import RequestError
from ppinfer.request import PromptTokenLogprobs, RequestDelta, TokenLogprobs
from ppinfer.sampling import SamplingParams
from ppinfer.trace.model import Trace


class FakeReport:
    def summary(self) -> str:
        return "3 tokens in 1.00 s = 3.0 tokens/s"


class FakeTracer:
    """A driver whose run is always the same."""

    def trace(self, on: bool) -> Trace | None:
        return None if on else two_stages()


class FakeEngine:
    """Answers every prompt with it in capitals, a word a delta, the last prompt first."""

    made: list[FakeEngine] = []  # noqa: RUF012

    def __init__(self, model: str, *, progress: Any = None, **settings: Any) -> None:
        self.config = EngineConfig.from_settings(settings)
        self.model, self.settings = model, settings
        self.notes = ["a note"] if model == "noted" else []
        self.choices = ["one thing", "another"] if model == "noted" else []
        self.calls: list[tuple[list[Any], SamplingParams]] = []
        self.aborted = 0
        self.closed = False
        FakeEngine.made.append(self)
        for done in (0, 1, 2):
            progress("load weights", done, 2)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def trace(self, path: Path, warn: Any = None) -> Tracing:
        return Tracing(FakeTracer(), path, {"model": self.model}, warn)

    def report(self) -> FakeReport:
        return FakeReport()

    def stream(self, prompts: Sequence[Any], params: SamplingParams) -> Iterator[RequestDelta]:
        self.calls.append(([list(p) if isinstance(p, list) else p for p in prompts], params))
        if self.model == "follower":
            prompts = []
        return self._deltas(prompts, params)

    def _deltas(self, prompts: Sequence[Any], params: SamplingParams) -> Iterator[RequestDelta]:
        try:
            for index, prompt in reversed(list(enumerate(prompts))):
                text = prompt[-1]["content"] if isinstance(prompt, list) else prompt
                if text == "refuse":
                    raise RequestError("The prompt is\nrefused.")
                words = text.upper().split()
                for number, word in enumerate(words):
                    if word == "INTERRUPT":
                        raise KeyboardInterrupt
                    last = number == len(words) - 1
                    entry = TokenLogprobs(number, float("-inf"), {number: -0.5, 9: -1.0})
                    yield RequestDelta(
                        index=index,
                        text=f" {word}",
                        token_ids=[number],
                        finish_reason="stop" if last else None,
                        logprobs=[entry] if params.logprobs is not None else None,
                        prompt_logprobs=_scores(params) if number == 0 else None,
                    )
        except GeneratorExit:
            self.aborted += 1
            raise


def _scores(params: SamplingParams) -> list[PromptTokenLogprobs | None] | None:
    if params.prompt_logprobs is None:
        return None
    return [None, PromptTokenLogprobs(7, -2.0, {5: -0.5}, False)]


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)
