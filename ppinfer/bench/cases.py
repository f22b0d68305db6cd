"""What is compared: shapes of work (columns) and ways to run it (rows). No torch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppinfer.errors import ConfigError

HF_NAME = "HF generate"
DTYPES = ("fp32", "bf16")
_SEED = 20_240_601


@dataclass(frozen=True, order=True)
class Shape:
    """``batch`` requests at once, each of ``prompt`` tokens, that get ``new`` tokens each."""

    batch: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.prompt}x{self.new}"

    @property
    def prompt_tokens(self) -> int:
        return self.batch * self.prompt

    @property
    def new_tokens(self) -> int:
        return self.batch * self.new

    def prompts(self, vocab_size: int, turn: int) -> list[list[int]]:
        """Random token ids, the same in every row; another turn has others, so no cache helps."""
        source = random.Random(f"{_SEED}/{self}/{turn}")
        return [
            [source.randrange(vocab_size) for _ in range(self.prompt)] for _ in range(self.batch)
        ]


@dataclass(frozen=True)
class Row:
    """One way to run a model: Hugging Face ``generate`` (0 stages) or a pipeline.

    ``micro_batches`` is their number, or ``None`` for the engine's own choice. ``plan`` has the
    settings of a pipeline that was planned.
    """

    stages: int
    micro_batches: int | None = None
    plan: tuple[tuple[str, Any], ...] = ()

    @property
    def is_hf(self) -> bool:
        return self.stages == 0

    @property
    def name(self) -> str:
        if self.is_hf:
            return HF_NAME
        if self.plan:
            return f"as planned, {self.stages} stages"
        name = "1 process" if self.stages == 1 else f"{self.stages} stages"
        return name if self.micro_batches is None else f"{name}, {self.micro_batches} mb"

    def settings(self, shapes: Sequence[Shape]) -> dict[str, Any]:
        """Of an engine in which every shape's sequences all have a place."""
        largest = max(shape.batch for shape in shapes)
        longest = max(shape.prompt + shape.new for shape in shapes)
        settings: dict[str, Any] = {"pp_size": self.stages, "max_model_len": longest}
        if self.plan:
            return settings | dict(self.plan)
        size = -(-largest // (self.micro_batches or self.stages))
        settings["micro_batch_size"] = size
        if self.micro_batches is not None:
            settings["num_micro_batches"] = self.micro_batches
        return settings


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """``"32x128x64,1x128x64"``: sequences x prompt tokens x new tokens.

    Raises:
        ConfigError: an entry has another form.
    """
    shapes = []
    for item in filter(None, text.replace(" ", "").split(",")):
        parts = item.lower().split("x")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise _not_a_shape(item)
        shape = Shape(*map(int, parts))
        if min(shape.batch, shape.prompt) < 1 or shape.new < 2:
            raise _not_a_shape(item)
        shapes.append(shape)
    if not shapes:
        raise _not_a_shape(text)
    return tuple(dict.fromkeys(shapes))


def parse_counts(text: str, what: str) -> tuple[int, ...]:
    """``"1,2,4"``: positive whole numbers. Raises ``ConfigError`` for anything else."""
    items = [item for item in text.replace(" ", "").split(",") if item]
    if not items or not all(i.isascii() and i.isdigit() and int(i) > 0 for i in items):
        raise ConfigError(f"{what} must be a list of whole numbers such as 1,2,4, not {text!r}.")
    return tuple(dict.fromkeys(map(int, items)))


def parse_micro_batches(text: str) -> tuple[int | None, ...]:
    """``"auto,1,2"``: numbers of micro-batches; ``auto`` leaves the choice to the engine."""
    counts: list[int | None] = []
    for item in text.replace(" ", "").split(","):
        counts += [None] if item == "auto" else parse_counts(item, "micro-batches")
    return tuple(dict.fromkeys(counts))


def parse_dtypes(text: str) -> tuple[str, ...]:
    """``"bf16,fp32"``. Raises ``ConfigError`` for what a processor does not compute in."""
    names = tuple(dict.fromkeys(filter(None, text.replace(" ", "").split(","))))
    unknown = [name for name in names if name not in DTYPES]
    if unknown or not names:
        raise ConfigError(f"dtypes must be a list out of {', '.join(DTYPES)}, not {text!r}.")
    return names


def rows_of(
    stages: Sequence[int],
    micro_batches: Sequence[int | None] = (None,),
    hf: bool = True,
    plan: Mapping[str, Any] | None = None,
) -> tuple[Row, ...]:
    """Hugging Face first, then every pipeline size with every number of micro-batches, then what
    was planned; its dtype is left to the benchmark."""
    pipelines = [Row(size, count) for size in stages for count in micro_batches]
    if plan:
        kept = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in plan.items()
            if name not in ("dtype", "pp_size")
        }
        pipelines.append(Row(plan["pp_size"], None, tuple(sorted(kept.items()))))
    return (*([Row(0)] if hf else []), *pipelines)


def _not_a_shape(item: str) -> ConfigError:
    return ConfigError(
        f"a shape is sequences x prompt tokens x new tokens (at least 2), such as 8x128x64, "
        f"not {item!r}."
    )
