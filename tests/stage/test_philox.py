from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from ppinfer.sampling import INT64_MAX, INT64_MIN
from ppinfer.stage.philox import philox4x32, uniform


def test_known_answers() -> None:
    """The vectors of Random123's ``kat_vectors`` for philox4x32-10."""
    ones = 0xFFFFFFFF
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox4x32(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    ) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@given(st.integers(INT64_MIN, INT64_MAX), st.integers(0, 1 << 40))
def test_a_draw_is_a_fraction_and_repeats(seed: int, position: int) -> None:
    u = uniform(seed, position)
    assert 0.0 <= u < 1.0
    assert u == uniform(seed, position)


def test_draws_are_spread_evenly() -> None:
    draws = [uniform(seed, position) for seed in range(40) for position in range(250)]
    assert abs(statistics.fmean(draws) - 0.5) < 0.01
    assert abs(statistics.variance(draws) - 1 / 12) < 0.002
    assert len(set(draws)) == len(draws)
