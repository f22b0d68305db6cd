"""Prompts for the demo model: one token to over 700, raw and chat, several languages, code."""

from __future__ import annotations

from ppinfer.request import Prompt

_STORY = (
    "The lighthouse keeper counted the ships that passed in the night, and wrote each of them down "
    "in a book with a green cover: the hour, the wind, the colour of the lamps. "
)
_LIST = "".join(f"{i}. item number {i} costs {i * 37 % 100} coins\n" for i in range(1, 40))


def _chat(text: str, system: str | None = None) -> Prompt:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": text}]


PROMPTS: list[Prompt] = [
    [504],  # a single token
    [1, 4093],
    "The",
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "import numpy as np\n\ndef mean(values):",
    "1, 1, 2, 3, 5, 8, 13,",
    "In 1969, the first",
    "Die Hauptstadt von Deutschland ist",
    "Il était une fois, dans un petit village,",
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme,",
    "吾輩は猫である。名前は",
    "Столица России —",
    "🙂🚀 Emoji and symbols: ∑ ∫ √",
    "   leading spaces,\n\n\tand tabs",
    _chat("What is gravity?"),
    _chat("Name three colours of the rainbow."),
    _chat("Écris une phrase en français."),
    _chat("Write a haiku about autumn.", system="You are a poet."),
    _chat(_STORY * 3 + "\nWhat did the keeper write down?"),
    _STORY * 4,
    _LIST,
    _STORY * 20,
    "Question: why is the sky blue?\nAnswer:",
    _chat("Summarise this list in one sentence:\n" + _LIST),
]
