"""Text and chat messages to token ids, off the event loop and within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import RequestError
from ppinfer.request import ChatMessage
from ppinfer.server.decoding import refuse_unsupported
from ppinfer.server.errors import invalid, unsupported
from ppinfer.server.protocol import Message
from ppinfer.server.protocol_tools import PastCall
from ppinfer.server.tools import Tools, told

ResultT = TypeVar("ResultT")

TIME_LIMIT = 10.0
"""Seconds for one text; a chat template has a shorter limit of its own."""

_AT_ONCE = 2
_THREADS = 8
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "tool",
}  # fmt: skip


class Texts:
    """Encodes for one model. A thread that got stuck is left to itself; there are some to spare."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ppinfer-text")
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def encode(
        self, tokenizer: Tokenizer | None, text: str, special: bool, param: str
    ) -> list[int]:
        known = _require(tokenizer, param)
        return await self._run(lambda: known.encode(text, special), param)

    async def encode_chat(
        self,
        tokenizer: Tokenizer | None,
        messages: list[Message],
        header: bool = True,
        tools: Tools | None = None,
    ) -> list[int]:
        """With ``header``, the one under which the model is to answer."""
        known, chat = _require(tokenizer, "messages"), plain_messages(messages)
        template = known.chat_template

        def work() -> list[int]:
            heard, listed = told(chat, tools or Tools(), template.knows_tools)
            return known.encode(template.render(heard, header, listed), add_special_tokens=False)

        return await self._run(work, "messages")

    async def decode(self, tokenizer: Tokenizer | None, ids: list[int], param: str) -> str:
        known = _require(tokenizer, param)
        return await self._run(lambda: known.decode(ids, skip_special_tokens=False), param)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], ResultT], param: str) -> ResultT:
        async with self._turn:
            job = asyncio.get_running_loop().run_in_executor(self._pool, work)
            try:
                return await asyncio.wait_for(job, TIME_LIMIT)
            except TimeoutError:
                raise invalid(
                    param, f"{param} could not be made into tokens within {TIME_LIMIT:g} seconds."
                ) from None
            except RequestError as error:
                error.param = error.param or param  # which the tokenizer cannot know
                raise


def _require(tokenizer: Tokenizer | None, param: str) -> Tokenizer:
    if tokenizer is None:
        raise invalid(param, "This model has no tokenizer; give prompts as token ids.")
    return tokenizer


def plain_messages(messages: list[Message]) -> list[ChatMessage]:
    """What a chat template gets to see. OpenAI's ``developer`` is its new word for ``system``."""
    if not messages:
        raise invalid("messages", "messages is empty; give at least one.")
    plain: list[ChatMessage] = []
    called: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        refuse_unsupported(message, f"{where}.")
        role = _ROLES.get(message.role)
        if role is None:
            raise invalid(f"{where}.role", f"{where}.role must be one of {', '.join(_ROLES)}.")
        plain.append(
            {
                "role": role,
                "content": _content(message, f"{where}.content"),
                **_of_tools(message, called, where),
            }
        )
        called.update(call.id for call in message.tool_calls or ())
    return plain


def _of_tools(message: Message, called: Container[str], where: str) -> dict[str, Any]:
    """Calls that an assistant made, or which of those ``called`` a tool's message answers."""
    if message.tool_calls and message.role != "assistant":
        raise invalid(f"{where}.tool_calls", f"{where}.tool_calls is for the assistant alone.")
    if message.tool_call_id is not None and message.role != "tool":
        raise invalid(f"{where}.tool_call_id", f"{where}.tool_call_id is for tools alone.")
    if message.name is not None and message.role != "tool":
        raise unsupported(f"{where}.name")
    if message.role == "tool":
        if message.tool_call_id is None:
            name = f"{where}.tool_call_id"
            raise invalid(name, f"{name} is missing.", "missing_parameter")
        if message.tool_call_id not in called:
            raise invalid(
                f"{where}.tool_call_id", f"{where}.tool_call_id is that of no call before it."
            )
        named = {} if message.name is None else {"name": message.name}
        return {"tool_call_id": message.tool_call_id, **named}
    calls = message.tool_calls or ()
    plain = [_plain(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return {"tool_calls": plain} if plain else {}


def _plain(call: PastCall, where: str) -> dict[str, Any]:
    """As templates take it: the arguments are no text, but what that says."""
    try:
        arguments = msgspec.json.decode(call.function.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        name = f"{where}.function.arguments"
        raise invalid(name, f"{name} must be a JSON object as text.") from None
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": call.type, "function": function}


def _content(message: Message, where: str) -> str:
    """Parts are put on lines of their own. Nothing that a part refers to is ever fetched."""
    if isinstance(message.content, str):
        return message.content
    if not message.content and message.tool_calls:
        return ""
    if not message.content:
        raise invalid(where, f"{where} must be text.")
    texts = []
    for index, part in enumerate(message.content):
        if part.type != "text":
            raise invalid(
                f"{where}[{index}].type",
                f"{where}[{index}].type must be text; this model takes nothing else.",
                "unsupported_content",
            )
        if part.text is None:
            raise invalid(f"{where}[{index}].text", f"{where}[{index}].text is missing.")
        texts.append(part.text)
    return "\n".join(texts)
