"""``tools``: what the model is told of them, and a grammar by which it calls them.

A call is written as many open models were trained to write it (first Hermes 2 Pro, then Qwen):

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    </tool_call>

A chat template that knows these tags is given the tools and tells of them in its own words. For
any other model a system message does, and calls and results of earlier turns are put in as text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppinfer.engine.chat import TOOL_TAG
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.grammar import Grammar, schema_text
from ppinfer.request import ChatMessage
from ppinfer.server.errors import invalid
from ppinfer.server.formats import blaming, check_name
from ppinfer.server.protocol import ChatRequest
from ppinfer.server.protocol_tools import Function, NamedTool

OPEN, CLOSE = TOOL_TAG, "</tool_call>"
HEAD = f'{OPEN}\n{{"name": "'
MIDDLE = '", "arguments": '
TAIL = f"}}\n{CLOSE}"

MAX_TOOLS = 128

_PROMPT = """\
You may call functions. Those that exist, each with the JSON schema of its parameters:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON between two tags, like this:
{call}
Several calls follow each other. The results then come to you between <tool_response> and
</tool_response>."""


@dataclass(frozen=True)
class Tools:
    """The tools of one request.

    Attributes:
        functions: that may be called; none where the model is to know of none.
        is_forced: whether the answer must be a call.
        is_parallel: whether there may be several.
    """

    functions: tuple[Function, ...] = ()
    is_forced: bool = False
    is_parallel: bool = True

    def __bool__(self) -> bool:
        return bool(self.functions)

    @property
    def listed(self) -> list[dict[str, Any]]:
        """As chat templates take them."""
        return [{"type": "function", "function": _plain(function)} for function in self.functions]

    def grammar(self, answer: Grammar | None, tokenizer: Tokenizer | None) -> Grammar:
        """Calls, and unless one is forced, text or what ``answer`` describes.

        Raises:
            ApiError: a function's parameters are no schema that can be followed.
        """
        opening, closing = (_marker(tag, tokenizer) for tag in (OPEN, CLOSE))
        calls = 'rest ("\\n" opening rest)*' if self.is_parallel else "rest"
        lines = ["%llguidance {}", f"opening: {opening}"]
        if self.is_forced:
            lines.append(f"start: opening {calls}")
        elif answer is not None:
            lines.append(f"start: answer | opening {calls}")
            lines.append(f"answer: %json {answer.text}")
        else:  # lazy: a text goes on to where a call begins, and never over it
            lines.append(f"start: TEXT | begun {calls}")
            lines.append("TEXT: /(.|\\n)*/")
            is_spelled = opening.startswith('"')
            lines.append(f"begun{'[lazy]' if is_spelled else ''}: TEXT {opening}")
        lines.append("rest: " + " | ".join(f"rest_{i}" for i in range(len(self.functions))))
        for index, function in enumerate(self.functions):
            head = json.dumps(HEAD.removeprefix(OPEN) + function.name + MIDDLE)
            tail = json.dumps(TAIL.removesuffix(CLOSE))
            lines.append(f"rest_{index}: {head} arguments_{index} {tail} {closing}")
            lines.append(f"arguments_{index}: %json {_parameters(function)}")
        with blaming("tools"):
            return Grammar.lark("\n".join(lines))


def read_tools(request: ChatRequest) -> Tools:
    """Raises ``ApiError`` with status 400 that names the field."""
    tools, choice = request.tools or [], request.tool_choice
    if len(tools) > MAX_TOOLS:
        raise invalid("tools", f"tools takes at most {MAX_TOOLS}.")
    functions = [tool.function for tool in tools]
    for index, function in enumerate(functions):
        _check(function, functions[:index], f"tools[{index}].function")
    if isinstance(choice, NamedTool):
        name = choice.function.name
        functions = [function for function in functions if function.name == name]
        if not functions:
            raise invalid("tool_choice", "tool_choice names a function that is not among tools.")
        return Tools(tuple(functions), is_forced=True, is_parallel=False)
    if choice == "required" and not functions:
        raise invalid("tool_choice", "tool_choice is required, but there are no tools.")
    if choice == "none":
        return Tools()
    return Tools(tuple(functions), choice == "required", request.parallel_tool_calls is not False)


def told(
    messages: Sequence[ChatMessage], tools: Tools, knows_tools: bool
) -> tuple[list[ChatMessage], list[dict[str, Any]] | None]:
    """Messages and tools for a chat template, which ``knows_tools`` or does not."""
    if knows_tools:
        return list(messages), tools.listed or None
    plain = [_as_text(message) for message in messages]
    if tools:
        call = f"{HEAD}…{MIDDLE}{{…}}{TAIL}"
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools.listed)
        prompt = _PROMPT.format(tools=listed, call=call)
        if plain[0]["role"] == "system":
            first = plain.pop(0)
            prompt = f"{first['content']}\n\n{prompt}"
        plain.insert(0, {"role": "system", "content": prompt})
    return plain, None


def _as_text(message: ChatMessage) -> ChatMessage:
    role, content = message["role"], message["content"]
    if role == "tool":
        return {
            "role": "user",
            "content": f"<tool_response>\n{content}\n</tool_response>",
        }
    calls = [
        HEAD + call["function"]["name"] + MIDDLE
        + json.dumps(call["function"]["arguments"], ensure_ascii=False) + TAIL
        for call in message.get("tool_calls", ())
    ]  # fmt: skip
    return {"role": role, "content": "\n".join([*([content] if content else []), *calls])}


def _plain(function: Function) -> dict[str, Any]:
    description = {} if function.description is None else {"description": function.description}
    return {"name": function.name, **description, "parameters": _schema(function)}


def _schema(function: Function) -> dict[str, Any]:
    if function.parameters is None:  # it takes none
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **function.parameters}


def _parameters(function: Function) -> str:
    return schema_text(_schema(function), strict=bool(function.strict))


def _check(function: Function, earlier: Sequence[Function], where: str) -> None:
    check_name(function.name, f"{where}.name")
    if any(function.name == other.name for other in earlier):
        raise invalid(f"{where}.name", f"{where}.name is that of an earlier tool.")
    if _schema(function)["type"] != "object":
        raise invalid(f"{where}.parameters", f"{where}.parameters must be of the type object.")
    with blaming(f"{where}.parameters"):
        _parameters(function)


def _marker(tag: str, tokenizer: Tokenizer | None) -> str:
    """A tag in Lark: the token that the model was trained to write, or else its letters."""
    token = None if tokenizer is None else tokenizer.token_id(tag)
    if token is None or token in tokenizer.special_ids:  # type: ignore[union-attr]
        return json.dumps(tag)
    return f"<[{token}]>"
