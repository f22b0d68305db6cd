"""What goes wrong, as OpenAI's clients expect to be told of it.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

A message never shows a path, an address, an object's repr, or a prompt.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import msgspec

from ppinfer.errors import CapacityError, EngineClosedError, PPInferError, RequestError

Headers = Sequence[tuple[bytes, bytes]]

_log = logging.getLogger("ppinfer.server")
_MAX_MESSAGE = 400
# Objects as Python writes them, addresses in memory, and paths of at least two parts.
_PRIVATE = re.compile(
    r"<[^<>]{0,200} at 0x[0-9a-fA-F]+>|\b0x[0-9a-fA-F]{6,}\b|(?<![\w.:/])(?:/[\w.@+-]+){2,}/?"
)


class ApiError(Exception):
    """An answer that is an error.

    Args:
        param: the field of the request that is to blame, such as ``messages[0].role``.
        code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Headers = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def kind(self) -> str:
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        if self.status == 499:
            return "request_cancelled"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> bytes:
        detail = {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }  # fmt: skip
        return msgspec.json.encode({"error": detail})


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A request that can never be served as it is."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str) -> ApiError:
    return invalid(param, f"{param} is not supported by this server.", "unsupported_parameter")


def context_length_exceeded(param: str, tokens: int, limit: int) -> ApiError:
    """``limit`` is of prompt and new tokens together."""
    return invalid(
        param,
        f"The prompt has {tokens} tokens, but this model's context holds {limit}, the new tokens "
        "included.",
        "context_length_exceeded",
    )


def unavailable(message: str, code: str, retry_after: int = 1) -> ApiError:
    """Not now, but a later try may succeed."""
    headers = [(b"retry-after", str(retry_after).encode())]
    return ApiError(503, message, code=code, headers=headers)


def shutting_down() -> ApiError:
    return unavailable("The server is shutting down.", "shutting_down")


def as_api_error(error: Exception, request_id: str) -> ApiError:
    """The answer for whatever was raised; what nobody foresaw is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return invalid(error.param, _public(error))
    if isinstance(error, CapacityError):
        return invalid(None, _public(error), "capacity_exceeded")
    if isinstance(error, EngineClosedError):
        return unavailable("The engine has ended.", "engine_closed")
    if isinstance(error, PPInferError):
        _log.error("%s: %s", request_id, error)
        return unavailable("The engine failed while it was at work on this request.", "engine")
    _log.error("%s: unexpected", request_id, exc_info=error)
    return ApiError(500, "The server failed on this request.", code="internal_error")


def _public(error: Exception) -> str:
    """An engine's message without what is nobody's business."""
    message = _PRIVATE.sub("…", " ".join(str(error).split()))
    return message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "…"
