"""A small multiple-choice task for evaluation harnesses."""

from __future__ import annotations

from typing import Any, NamedTuple

QUESTIONS: list[dict[str, Any]] = [
    {"question": "The capital of France is", "choices": ["Paris", "Rome", "a small town"]},
    {"question": "Water boils at", "choices": ["100 degrees Celsius", "midnight"]},
    {"question": "One, two, three, four,", "choices": ["five", "six", "seven eight nine"]},
    {"question": "def add(a, b):\n    return", "choices": ["a + b", "a * b", "[a, b]"]},
    {"question": "Q: ¿Cómo se dice “cat” en español? 🙂\nA:", "choices": ["gato", "perro", "犬"]},
    {"question": "Once upon a time, there was a little", "choices": ["girl", "boy named Tim"]},
]  # fmt: skip


class Likelihood(NamedTuple):
    """Of a choice, given its question."""

    logprob: float
    is_greedy: bool


def texts() -> list[tuple[str, str]]:
    """Every question, and every one of its choices as it goes on from there."""
    return [(doc["question"], f" {choice}") for doc in QUESTIONS for choice in doc["choices"]]
