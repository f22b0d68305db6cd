"""What things look like, the same in the terminal and in a picture."""

from __future__ import annotations

SLOTS = ("#4E79A7", "#59A14F", "#B07AA1", "#76B7B2", "#9C755F", "#86BCB6", "#499894", "#79706E")
"""Micro-batch slots, in turn."""

DECODE, PREFILL = "#4E79A7", "#B07AA1"
"""Computing, where a moment holds several slots."""

ACTIVITIES = {
    "sample": "#2B4562",
    "prepare": "#8A8A8A",
    "wait_plan": "#E15759",
    "wait_input": "#F2A33A",
    "send": "#EDD94C",
    "plan": "#4E79A7",
    "commit": "#59A14F",
    "admit": "#B07AA1",
    "read": "#8A8A8A",
    "wait": "#E4E4E4",
}

LETTERS = {
    "sample": "*",
    "prepare": "+",
    "wait_plan": "-",
    "wait_input": ".",
    "send": ">",
    "plan": "p",
    "commit": "c",
    "admit": "a",
    "read": "r",
    "wait": " ",
}
"""How activities show where there is no colour; computing shows as the slot's letter."""

NAMES = {"wait_plan": "wait for plan", "wait_input": "wait for input"}


def name_of(kind: str) -> str:
    return NAMES.get(kind, kind)


def slot_colour(slot: int) -> str:
    return SLOTS[slot % len(SLOTS)]
