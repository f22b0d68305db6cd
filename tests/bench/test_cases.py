"""Shapes, rows and their settings."""

from __future__ import annotations

import pytest

from ppinfer.bench.cases import (
    Row,
    Shape,
    parse_counts,
    parse_dtypes,
    parse_micro_batches,
    parse_shapes,
    rows_of,
)
from ppinfer.config import EngineConfig
from ppinfer.errors import ConfigError


def test_shapes_are_read_in_order_and_once() -> None:
    shapes = parse_shapes("32x128x64, 1X128X64,32x128x64")
    assert shapes == (Shape(32, 128, 64), Shape(1, 128, 64))
    assert str(shapes[0]) == "32x128x64"
    assert (shapes[0].prompt_tokens, shapes[0].new_tokens) == (4096, 2048)


@pytest.mark.parametrize("text", ["", ",", "32x128", "0x1x2", "1x0x2", "1x1x1", "axbxc", "1x-1x4"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="8x128x64"):
        parse_shapes(text)


def test_lists_of_counts_and_dtypes() -> None:
    assert parse_counts("1, 2,4,2", "pp-sizes") == (1, 2, 4)
    assert parse_micro_batches("auto,1,8") == (None, 1, 8)
    assert parse_dtypes("bf16,fp32") == ("bf16", "fp32")
    for text in ("", "0", "two", "-1", "1.5"):
        with pytest.raises(ConfigError, match="pp-sizes"):
            parse_counts(text, "pp-sizes")
    with pytest.raises(ConfigError, match="fp16"):
        parse_dtypes("fp16")


def test_prompts_are_equal_for_all_rows_and_new_in_every_turn() -> None:
    shape = Shape(3, 20, 4)
    assert shape.prompts(97, 1) == shape.prompts(97, 1)
    assert shape.prompts(97, 1) != shape.prompts(97, 2)
    prompts = shape.prompts(97, 0)
    assert [len(prompt) for prompt in prompts] == [20, 20, 20]
    assert all(0 <= token < 97 for prompt in prompts for token in prompt)


def test_rows_come_after_hugging_face() -> None:
    assert rows_of((1, 2), (None, 4)) == (Row(0), Row(1), Row(1, 4), Row(2), Row(2, 4))
    assert rows_of((2,), hf=False) == (Row(2),)
    assert [row.name for row in rows_of((1, 2), (4,))] == [
        "HF generate",
        "1 process, 4 mb",
        "2 stages, 4 mb",
    ]


@pytest.mark.parametrize("count", [None, 1, 3, 8, 40])
def test_every_sequence_has_a_place(count: int | None) -> None:
    shapes = [Shape(32, 128, 64), Shape(1, 500, 20)]
    config = EngineConfig(**Row(2, count).settings(shapes))
    assert config.micro_batches * config.micro_batch_size >= 32
    assert config.max_model_len == 520
