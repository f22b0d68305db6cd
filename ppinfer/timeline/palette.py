"""What things look like, the same in the terminal and in a picture."""

from __future__ import annotations

SLOTS = ("#4E79A7", "#59A14F", "#B07AA1", "#76B7B2", "#6B5B95", "#8CD17D", "#A0CBE8", "#D4A6C8")
"""Micro-batch slots, in turn."""

DECODE, PREFILL = "#5C6BC0", "#A682CE"
"""Computing, where a moment holds several slots."""

ACTIVITIES = {
    "sample": "#2B4562",
    "prepare": "#8A8A8A",
    "wait_plan": "#E15759",
    "wait_input": "#F2A33A",
    "send": "#EDD94C",
    "plan": "#7F5B45",
    "commit": "#BC8F76",
    "deliver": "#A98467",
    "admit": "#5E5653",
    "read": "#D0B9AC",
    "wait": "#FFFFFF",
}

LETTERS = {"sample": "*", "prepare": "+", "wait_plan": "-", "wait_input": ".", "send": ">"}
"""How a stage's activities show in a terminal; computing shows as the slot's letter."""


def name_of(kind: str) -> str:
    return kind.replace("_", " ")


def slot_colour(slot: int) -> str:
    return SLOTS[slot % len(SLOTS)]
