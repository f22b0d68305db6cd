"""Token ids to text as they come, and the search for stop strings in it.

The pieces that are given out join to exactly what decoding all ids at once would give, cut before
the first stop string. Nothing is given out that a later token could still change: an unfinished
character and the possible beginning of a stop string are held back. A token costs the same however
long the text already is.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Protocol

from ppinfer.engine.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_MAX_UNFINISHED = 8
"""Tokens after which a replacement character at the end is no unfinished character any more."""


class Detokenizer:
    """The new text of one sequence.

    Attributes:
        stop_string: the stop string that ended the text, or ``None``.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        kinds = decoder_kinds(tokenizer)
        self._text: _Text = (
            _ByteLevelText(tokenizer)
            if kinds == ("ByteLevel",)
            else _WindowText(tokenizer, byte_runs="ByteFallback" in kinds)
        )
        self._stops = StopStrings(stop) if stop else None
        self.stop_string: str | None = None

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before; none after a stop string."""
        if token_id in self._skipped:
            return ""
        text = self._text.push(token_id)
        return text if self._stops is None else self._searched(text, self._stops)

    def finish(self) -> str:
        """What was held back, now that no more tokens come."""
        text = self._text.finish()
        if self._stops is None:
            return text
        return self._searched(text, self._stops) + self._stops.finish()

    def _searched(self, text: str, stops: StopStrings) -> str:
        """What of it can be given out."""
        text = stops.push(text)
        self.stop_string = stops.found
        return text


class StopStrings:
    """Finds the stop string that is complete first; of several complete at once, the longest.

    ``found`` is that string. Matching takes one automaton a stop string (Knuth, Morris and Pratt),
    so it never looks back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._failures = [_failures(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The part of all text so far that belongs to no stop string and was not given out."""
        if self.found is not None or not text:
            return ""
        pending = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            for index, stop in enumerate(self._stops):
                failures, matched = self._failures[index], self._matched[index]
                while matched and stop[matched] != char:
                    matched = failures[matched - 1]
                if stop[matched] == char:
                    matched += 1
                if matched == len(stop):
                    self.found = stop
                    self._held = ""
                    return pending[: end - len(stop)]
                self._matched[index] = matched
        cut = len(pending) - max(self._matched, default=0)
        self._held = pending[cut:]
        return pending[:cut]

    def finish(self) -> str:
        """The held beginning of a stop string that never came."""
        held, self._held = self._held, ""
        return held


def _failures(stop: str) -> list[int]:
    """For each beginning of ``stop``, the length of its longest own ending that also begins it."""
    lengths = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = lengths[length - 1]
        if stop[index] == stop[length]:
            length += 1
        lengths[index] = length
    return lengths


# ---------------------------------------------------------------- ids to text


class _Text(Protocol):
    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


class _ByteLevelText:
    """Byte-level BPE: every token is some bytes, and the bytes in a row are UTF-8.

    Nearly every token is whole characters and comes after whole characters: then its text is known.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_inside = False  # whether a character is unfinished

    def push(self, token_id: int) -> str:
        data, text = self._pieces[token_id]
        if text is None or self._is_inside:
            text = self._decoder.decode(data)
            self._is_inside = bool(self._decoder.getstate()[0])
        return text

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowText:
    """Any other decoder: what a token adds is seen against the tokens just before it.

    The window holds the tokens given out last and the ones that are pending. With ``byte_runs``,
    tokens such as ``<0xE4>`` stand for single bytes, and whether a row of them is text or rubbish
    is decided for the whole row at once: such a row is pending until it ends.
    """

    def __init__(self, tokenizer: Tokenizer, byte_runs: bool) -> None:
        self._tokenizer = tokenizer
        self._byte_runs = byte_runs
        self._window: list[int] = []
        self._given = 0  # tokens at the window's start that are given out
        self._given_chars = 0  # length of their text, decoded by themselves

    def push(self, token_id: int) -> str:
        token = self._tokenizer.backend.id_to_token(token_id)
        if token is None:  # outside the vocabulary
            return ""
        if not token and self._window and self._tokenizer.backend.decoder is not None:
            return ""  # changes nothing, unless it takes the place of the first token
        self._window.append(token_id)
        if self._byte_runs and _is_byte(token):
            return ""
        text = self._tokenizer.decode(self._window, skip_special_tokens=False)
        pending = len(self._window) - self._given
        if text.endswith(_REPLACEMENT) and not self._byte_runs and pending < _MAX_UNFINISHED:
            return ""
        return self._give(text)

    def finish(self) -> str:
        return self._give(self._tokenizer.decode(self._window, skip_special_tokens=False))

    def _give(self, text: str) -> str:
        new = text[self._given_chars :]
        if new:
            self._window = self._window[self._given :]
            self._given = len(self._window)
            self._given_chars = len(self._tokenizer.decode(self._window, skip_special_tokens=False))
        return new


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def decoder_kinds(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Names of the decoder's steps, such as ``("ByteLevel",)``."""
    decoder = tokenizer.backend.decoder
    if decoder is None:
        return ()
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    return tuple(step["type"] for step in steps)
