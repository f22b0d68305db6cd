"""Getting to know a server before the load: its model, what it refuses, how it counts tokens."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ppinfer.bench.serve.answer import ask
from ppinfer.bench.serve.records import RequestRecord
from ppinfer.bench.serve.target import Dialect, Target
from ppinfer.bench.serve.words import OPENING, WORDS
from ppinfer.bench.serve.workload import Ask, Gauge
from ppinfer.client.http import Client
from ppinfer.errors import ServerError

_REFUSED = ("HTTP 400", "HTTP 422")
_FEW, _MORE = 8, 72
_MAX_COUNTS = 100
_MIN_WORDS = 64


async def meet(client: Client, target: Target) -> tuple[Target, Gauge, list[str]]:
    """The target with its model and dialect, how words become tokens, and notes for people.

    Raises:
        ServerError: it cannot be measured; says why.
    """
    served = await client.models()
    if not target.model:
        if not served:
            raise ServerError(f"{target.url}/v1/models names no model: name it with --model.")
        target = replace(target, model=served[0])
    words = await _single_tokens(client, target.model)
    asked = target.dialect
    target, few = await _first_answer(client, target, words or WORDS)
    notes = _notes(asked, target.dialect, few)
    more = await _try(client, target, _text(words or WORDS, _MORE))
    per_word = 1.0
    if not words and more.has_usage and more.input_tokens > few.input_tokens:
        per_word = (more.input_tokens - few.input_tokens) / (_MORE - _FEW)
    overhead = few.input_tokens - _FEW * per_word if few.has_usage else 0.0
    return target, Gauge(words or WORDS, per_word, overhead), notes


async def _first_answer(
    client: Client, target: Target, words: Sequence[str]
) -> tuple[Target, RequestRecord]:
    """With as many of the wanted fields as the server takes."""
    wanted = target.dialect
    tried = [wanted, replace(wanted, ignore_eos=False), replace(wanted, usage=False)]
    record = RequestRecord(0.0)
    for dialect in dict.fromkeys([*tried, Dialect(usage=False)]):
        target = replace(target, dialect=dialect)
        record = await _try(client, target, _text(words, _FEW))
        if record.is_ok:
            return target, record
        if record.status not in _REFUSED:
            break
    why = f": {record.why}" if record.why else ""
    raise ServerError(
        f"{target.url}{target.path} did not answer a first short request to model "
        f"{target.model!r} ({record.status}{why})."
    )


def _notes(asked: Dialect, spoken: Dialect, answer: RequestRecord) -> list[str]:
    notes = []
    if asked.ignore_eos and not spoken.ignore_eos:
        notes.append("The server refuses ignore_eos: answers end where the model ends them.")
    if not answer.has_usage:
        notes.append(
            "The server sends no usage: input tokens are estimates, and each piece of text that "
            "came counts as one output token."
        )
    return notes


async def _try(client: Client, target: Target, text: str) -> RequestRecord:
    record = RequestRecord(0.0)
    body = target.body(Ask(text, max_tokens=1))
    await ask(client, target, body, record, time.perf_counter())
    return record


async def _single_tokens(client: Client, model: str) -> Sequence[str]:
    """The words that are one token each, by ``/tokenize``; none where that does not say.

    Words of a text are counted apart by all usual tokenizers, so groups are counted, and halved
    where a count is higher than the group's words.
    """
    form = await _tokenize_form(client, model)
    if form is None:
        return ()
    base = await client.count_tokens(form)
    groups: list[list[str]] = [list(WORDS)]
    single: list[str] = []
    name = "prompt" if "prompt" in form else "content"
    for _ in range(_MAX_COUNTS):
        if not groups or base is None:
            break
        group = groups.pop()
        count = await client.count_tokens(form | {name: " ".join([OPENING, *group])})
        if count is None:
            return ()
        if count == base + len(group):
            single += group
        elif len(group) > 1:
            middle = len(group) // 2
            groups += [group[:middle], group[middle:]]
    return sorted(single) if len(single) >= _MIN_WORDS else ()


async def _tokenize_form(client: Client, model: str) -> dict[str, Any] | None:
    """The opening word as ``/tokenize`` takes it here: vLLM's and our way, or llama.cpp's."""
    for form in ({"model": model, "prompt": OPENING}, {"content": OPENING}):
        if await client.count_tokens(form) is not None:
            return form
    return None


def _text(words: Sequence[str], count: int) -> str:
    source = random.Random(f"meet/{count}")
    return " ".join([OPENING, *source.choices(words, k=count)])
