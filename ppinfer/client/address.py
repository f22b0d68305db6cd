"""Where a server is, what it is told to be let in, and whether we can speak to it at all."""

from __future__ import annotations

import importlib
from urllib.parse import urlsplit

from ppinfer.errors import ConfigError


def root_of(url: str) -> str:
    """Scheme, host and path before ``/v1``; ``http`` where no scheme is given.

    Raises:
        ConfigError: this is no such address.
    """
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        port_is_sound = False
    if not port_is_sound or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"expected a server's address such as http://127.0.0.1:8000, not {url!r}."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError("The server's address must be bare; a key is given with --api-key.")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


def check_key(api_key: str | None) -> None:
    """Raises ``ConfigError`` where no request could carry this key."""
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("The API key has characters that no HTTP header can hold.")


def require_aiohttp() -> None:
    """Raises ``ConfigError`` where the library that speaks HTTP is not installed."""
    try:
        importlib.import_module("aiohttp")
    except ImportError as error:
        raise ConfigError(
            "Asking a server needs aiohttp, which is not installed: pip install 'ppinfer[load]'."
        ) from error
