"""The page: one document without outside assets, put together from its parts when it is first
asked for. It holds no data; its script asks for all that it shows.

Nothing runs in it but its own style and script, which the policy names by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from ppinfer.server.errors import Headers
from ppinfer.server.exchange import Exchange
from ppinfer.server.service import Service

_SCRIPTS = ("format.js", "stream.js", "lanes.js", "charts.js", "requests.js", "chat.js", "page.js")
"""In the order in which they are run, as one script."""


async def index(service: Service, exchange: Exchange, salt: str) -> None:
    body, headers = document()
    await exchange.answer(body, headers)


@cache
def document() -> tuple[bytes, Headers]:
    """The page, and the headers that go with it."""
    style = _part("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_part, _SCRIPTS)) + "})();\n"
    html = _part("index.html").replace("{style}", style).replace("{script}", script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return html.encode(), [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-frame-options", b"DENY"),
    ]


def _part(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
