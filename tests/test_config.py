from __future__ import annotations

from typing import Any

import pytest

from ppinfer.config import EngineConfig, parse_bytes, settings_help
from ppinfer.errors import ConfigError


def test_the_defaults_are_valid_and_frozen() -> None:
    config = EngineConfig()
    assert config.micro_batches == config.pp_size == 1
    with pytest.raises(AttributeError):
        config.pp_size = 2  # type: ignore[misc]
    assert all(settings_help().values())


def test_unknown_settings_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'pp_sise'; did you mean pp_size"):
        EngineConfig.from_settings({"pp_sise": 2})
    with pytest.raises(ConfigError, match="known: pp_size, "):
        EngineConfig.from_settings({"zzzzzz": 2})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pp_size": 0}, "pp_size must be a whole number of at least 1, not 0"),
        ({"pp_size": True}, "not True"),
        ({"pp_size": "2"}, "not '2'"),
        ({"dtype": "int8"}, "dtype must be one of auto, fp32, bf16, fp16, not 'int8'"),
        ({"comm": "pigeon"}, "comm must be one of"),
        ({"block_size": 24}, "block_size must be one of 16, 32, 64, 128, not 24"),
        ({"partition": "odd"}, "partition must be auto, even, or a list"),
        ({"pp_size": 2, "partition": [30]}, "names 1 stages, but pp_size is 2"),
        ({"pp_size": 2, "partition": [30, 0]}, "at least one layer"),
        ({"pp_size": 2, "partition": [1.5, 2]}, "partition must be"),
        ({"kv_cache_memory": "lots"}, "2GB"),
        ({"kv_cache_memory": 0}, "2GB"),
        ({"timeout": float("nan")}, "timeout must be above 0"),
        ({"timeout": 1e9}, "at most 1,000,000 seconds"),
        ({"timeout": "soon"}, "timeout must be a number"),
        ({"num_micro_batches": 0}, "num_micro_batches must be"),
        ({"max_num_seqs": 0}, "max_num_seqs must be"),
        ({"prefix_caching": 1}, "prefix_caching must be true or false"),
        ({"row_invariant": "no"}, "row_invariant must be true or false"),
    ],
)
def test_wrong_settings_say_what_was_expected(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        EngineConfig.from_settings(settings)


def test_how_many_sequences_run_at_once() -> None:
    assert EngineConfig(pp_size=3, micro_batch_size=5).max_sequences == 15
    assert EngineConfig(pp_size=3, micro_batch_size=5, num_micro_batches=2).max_sequences == 10
    assert EngineConfig(pp_size=3, max_num_seqs=7).max_sequences == 7


def test_values_are_normalised() -> None:
    import torch

    assert EngineConfig(dtype="float16").dtype == "fp16"  # type: ignore[arg-type]
    assert EngineConfig(dtype=torch.bfloat16).dtype == "bf16"  # type: ignore[arg-type]
    assert EngineConfig(pp_size=2, partition="17,13").partition == (17, 13)  # type: ignore[arg-type]
    assert EngineConfig(kv_cache_memory="2GB").kv_cache_memory == 2_000_000_000  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("1k", 1000), ("500MB", 5 * 10**8), ("1.5GiB", 3 << 29), ("2 gb", 2 * 10**9)],
)
def test_memory_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size
