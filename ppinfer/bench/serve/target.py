"""What is measured, and in which words it is asked. No HTTP here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from ppinfer.bench.serve.workload import Ask


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
