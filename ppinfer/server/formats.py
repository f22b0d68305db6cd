"""``response_format``: what it asks of an answer, as a grammar, and whom to blame for one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ppinfer.errors import RequestError
from ppinfer.grammar import Grammar
from ppinfer.server.errors import invalid
from ppinfer.server.protocol_tools import JsonSchemaFormat, ResponseFormat, TextFormat

FIELD = "response_format"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def format_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    """Raises ``ApiError`` with status 400."""
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    if not isinstance(wanted, JsonSchemaFormat):
        return Grammar.json_object()
    given = wanted.json_schema
    check_name(given.name, f"{FIELD}.json_schema.name")
    with blaming(f"{FIELD}.json_schema.schema"):
        return Grammar.json_schema(given.schema, strict=bool(given.strict))


def check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise invalid(where, f"{where} must have 1 to 64 letters, digits, underscores and hyphens.")


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """What the engine has against a grammar is told of the field that it was made from."""
    try:
        yield
    except RequestError as error:
        if error.param != "grammar":
            raise
        raise RequestError(str(error).replace("The grammar", field, 1), field) from None
