"""Addresses, keys, and errors of every shape."""

from __future__ import annotations

import pytest

from ppinfer.client.address import check_key, root_of
from ppinfer.client.chunks import reason_in
from ppinfer.errors import ConfigError


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": {"message": "no\\nroom"}}', "no room"),
        (b'{"detail": "not found"}', "not found"),
        (b'{"error": "x"}', "x"),
        (b"<html>", "<html>"),
        (b"\xff", "\ufffd"),
        (b"a" * 999, "a" * 200),
    ],
)
def test_reasons_of_every_shape(body: bytes, reason: str) -> None:
    assert reason_in(body) == reason


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://a:1", "http://a:1"),
        ("a:8000/v1/", "http://a:8000"),
        ("https://a/b/v1", "https://a/b"),
        ("http://[::1]:80/", "http://[::1]:80"),
    ],
)
def test_addresses(url: str, root: str) -> None:
    assert root_of(url) == root


@pytest.mark.parametrize(
    "url", ["", "ftp://a", "http://", "http://a:x", "http://a:0", "http://u:p@a"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        root_of(url)


def test_keys() -> None:
    check_key(None)
    check_key("sk-1")
    for key in ("a\nb", "ä"):
        with pytest.raises(ConfigError, match="no HTTP header can hold"):
            check_key(key)
