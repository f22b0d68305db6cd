"""The body of a request to its struct, or an error that names the field to blame."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from ppinfer.server.errors import ApiError, invalid, unsupported
from ppinfer.server.protocol import NEUTRAL

StructT = TypeVar("StructT", bound=msgspec.Struct)

_MAX_NAME = 100
_WORDS = {
    "int": "an integer", "float": "a number", "str": "a string", "bool": "a boolean",
    "array": "a list", "object": "an object", "null": "null",
}  # fmt: skip
_WHERE = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_TYPES = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<got>[^`]+)`")
_FIELD = re.compile(
    r"Object (?P<what>contains unknown|missing required) field `(?P<name>.*)`$", re.S
)
_OFFSET = re.compile(r"\(byte (\d+)\)$")
_NOT_A_NUMBER = re.compile(rb"-?(NaN|Infinity)")
_LAST_KEY = re.compile(rb'"([A-Za-z_]{1,40})"\s*:\s*-?$')


def decode(body: bytes, kind: type[StructT]) -> StructT:
    """Raises ``ApiError`` with status 400."""
    request = decode_struct(body, kind)
    refuse_unsupported(request)
    return request


def decode_struct(body: bytes, kind: type[StructT]) -> StructT:
    """Where ``Raw`` fields may hold anything. Raises ``ApiError`` with status 400."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except msgspec.DecodeError as error:
        raise _malformed(body, str(error)) from None
    except (UnicodeDecodeError, RecursionError):
        raise invalid(None, "The body is not valid JSON in UTF-8.") from None


def refuse_unsupported(request: msgspec.Struct, where: str = "") -> None:
    """Fields that are known and not supported may hold only what changes nothing."""
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if isinstance(value, msgspec.Raw):
            found = re.sub(rb"\s", b"", bytes(value))
            if found != b"null" and found not in NEUTRAL[name]:
                raise unsupported(where + name)


def _explain(message: str) -> ApiError:
    """One of msgspec's sentences, such as "Expected `int`, got `bool` - at `$.n`", for people."""
    path = ""
    if where := _WHERE.search(message):
        path = where["path"].removesuffix("[...]")
        message = message[: where.start()]
    if field := _FIELD.match(message):
        name = field["name"][:_MAX_NAME]
        param = f"{path}.{name}" if path else name
        if field["what"] == "missing required":
            return invalid(param, f"{param} is missing.", "missing_parameter")
        return invalid(param, f"{param} is not a known field.", "unknown_parameter")
    param = path or "The body"
    if where and "`key`" in where[0]:
        param = f"A key of {path}"
    if types := _TYPES.match(message):
        kinds = [kind for kind in types["expected"].split(" | ") if kind != "null"]
        expected = " or ".join(_WORDS.get(kind, kind) for kind in kinds)
        got = _WORDS.get(types["got"], types["got"])
        return invalid(path or None, f"{param} must be {expected}, not {got}.")
    if "out of range" in message:
        return invalid(path or None, f"{param} is too large a number.")
    return invalid(path or None, f"{param} has a value that is not supported.")


def _malformed(body: bytes, message: str) -> ApiError:
    """Python writes NaN and Infinity into JSON, which knows neither: then the field is named."""
    if offset := _OFFSET.search(message):
        at = int(offset[1])
        key = _LAST_KEY.search(body, max(0, at - 80), at)
        if key and _NOT_A_NUMBER.match(body, at):
            param = key[1].decode()
            return invalid(param, f"{param} must be a finite number.")
    return invalid(None, "The body is not valid JSON.")
