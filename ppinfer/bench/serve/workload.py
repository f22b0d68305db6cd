"""What is asked: prompts made of words, or those of a file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ppinfer.bench.serve.lengths import Lengths
from ppinfer.bench.serve.words import OPENING, WORDS

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Ask:
    """One request: a text or chat messages, and how many tokens its answer may have.

    ``prompt_tokens`` is how many the prompt was made to have, or ``None`` where nobody knows.
    """

    prompt: str | Messages
    max_tokens: int
    prompt_tokens: int | None = None

    @property
    def messages(self) -> Messages:
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return self.prompt

    @property
    def text(self) -> str:
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(str(message.get("content") or "") for message in self.prompt)


class Workload(Protocol):
    """Where requests come from."""

    def ask(self, index: int, number: int) -> Ask:
        """Request ``index`` of a level, which is request ``number`` of the whole run."""
        ...


@dataclass(frozen=True)
class Gauge:
    """How words become tokens: ``tokens = overhead + per_word * words``.

    The overhead is that of the opening word, the chat template and special tokens.
    """

    words: Sequence[str] = WORDS
    per_word: float = 1.0
    overhead: float = 0.0

    def pick(self, tokens: float, source: random.Random) -> list[str]:
        """Words of about so many tokens, the overhead not counted; at least one."""
        return source.choices(self.words, k=max(round(tokens / self.per_word), 1))


@dataclass(frozen=True)
class MadeUp:
    """Prompts of random words.

    Lengths depend on a request's place in its level, so that levels have the same; words are new
    with each request of a run, so that no cache helps but for the first ``shared_prefix`` tokens,
    which go before the prompt's own.
    """

    gauge: Gauge
    prompt: Lengths
    output: Lengths
    seed: int = 0
    shared_prefix: int = 0

    def ask(self, index: int, number: int) -> Ask:
        lengths = random.Random(f"{self.seed}/lengths/{index}")
        tokens, answer = self.prompt.draw(lengths), self.output.draw(lengths)
        source = random.Random(f"{self.seed}/words/{number}")
        words = self.gauge.pick(tokens - self.gauge.overhead, source)
        if self.shared_prefix:
            prefix = random.Random(f"{self.seed}/prefix")
            words = self.gauge.pick(self.shared_prefix, prefix) + words
        return Ask(" ".join([OPENING, *words]), answer, self.shared_prefix + tokens)


@dataclass(frozen=True)
class Entry:
    """A conversation of a file; ``max_tokens`` where the file says it."""

    prompt: str | Messages
    max_tokens: int | None


@dataclass(frozen=True)
class FromFile:
    """The entries of a file in random order, over and over; a later level goes on in it."""

    entries: Sequence[Entry]
    output: Lengths
    seed: int = 0

    def ask(self, index: int, number: int) -> Ask:
        turn, place = divmod(number, len(self.entries))
        entry = self.entries[_order(len(self.entries), f"{self.seed}/order/{turn}")[place]]
        drawn = self.output.draw(random.Random(f"{self.seed}/lengths/{index}"))
        return Ask(entry.prompt, entry.max_tokens or drawn)


@lru_cache(maxsize=2)
def _order(count: int, seed: str) -> Sequence[int]:
    return random.Random(seed).sample(range(count), count)
