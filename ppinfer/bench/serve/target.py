"""What is measured, and in which words it is asked. No HTTP here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ppinfer.bench.serve.workload import Ask
from ppinfer.errors import ConfigError


@dataclass(frozen=True)
class Dialect:
    """Fields of a request that a server may not know."""

    ignore_eos: bool = False
    usage: bool = True


@dataclass(frozen=True)
class Target:
    """What is measured. ``url`` is the server's root."""

    url: str
    endpoint: str
    model: str = ""
    dialect: Dialect = Dialect()

    @property
    def is_chat(self) -> bool:
        return self.endpoint == "chat"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def body(self, ask: Ask) -> bytes:
        fields: dict[str, Any] = {"model": self.model}
        fields |= {"messages": ask.messages} if self.is_chat else {"prompt": ask.text}
        fields |= {"max_tokens": ask.max_tokens, "temperature": 0.0, "stream": True}
        if self.dialect.usage:
            fields["stream_options"] = {"include_usage": True}
        if self.dialect.ignore_eos:
            fields["ignore_eos"] = True
        return msgspec.json.encode(fields)


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
