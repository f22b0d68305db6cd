"""Chat messages to the text that a model was trained on, by the model's own template.

A template is a Jinja program that comes with the checkpoint. It renders exactly as in
``transformers``, but it is not trusted: it runs in Jinja's immutable sandbox, sees plain values
only, and is stopped when it runs too long or writes too much.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from ppinfer.errors import RequestError
from ppinfer.request import ChatMessage

if TYPE_CHECKING:
    import jinja2

ROLES = ("system", "user", "assistant", "tool")
TOOL_TAG = "<tool_call>"
"""How a call begins with the models that share Hermes' way to write it."""

MAX_RENDERED_CHARS = 8_000_000
"""More than any context holds."""
MAX_RENDER_SECONDS = 2.0

_MORE_KEYS = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}
_TICK, _BOUNDED = "_ppinfer_tick", "_ppinfer_bounded"
_MAX_BITS = 100_000


class ChatTemplate:
    """The chat template of one model, compiled at first use.

    Args:
        source: the Jinja program, or ``None`` where the model has none.
        special_tokens: variables such as ``bos_token`` that templates refer to.
    """

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)

    def __bool__(self) -> bool:
        return self.source is not None

    @property
    def knows_tools(self) -> bool:
        """Whether it tells of tools, and of calls in ``TOOL_TAG``s."""
        return self.source is not None and TOOL_TAG in self.source and "tools" in self.source

    def render(
        self,
        messages: Sequence[ChatMessage],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as text, by default with the header of the answer to come.

        ``tools`` are plain JSON, as ``transformers`` gives them to a template.

        Raises:
            RequestError: the messages have another shape, the model has no template, or its
                template refuses them.
        """
        chat = check_messages(messages)
        if self.source is None:
            raise RequestError(
                "This model has no chat template, so it takes no chat messages; "
                "give the prompt as text, with the model's own markers if it has any."
            )
        budget = _Budget()
        parts: list[str] = []
        try:
            for part in self._compiled.generate(
                messages=chat,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **{_TICK: budget.tick},
            ):
                budget.spend(len(part))
                parts.append(part)
        except RequestError:
            raise
        except Exception as error:  # whatever a foreign program can do
            raise RequestError(_why(error)) from error
        return "".join(parts)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return _compile(self.source or "")


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Plain copies of well-formed messages; anything else is a ``RequestError`` that names it."""
    if not isinstance(messages, list | tuple):
        raise RequestError(f"Chat messages must be a list, not {type(messages).__name__}.")
    if not messages:
        raise RequestError("The list of chat messages is empty; give at least one.")
    return [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(
            f"{where} must be an object with role and content, not {type(message).__name__}."
        )
    for key in ("role", "content"):
        if key not in message:
            raise RequestError(f"{where} has no {key}.")
        if not isinstance(message[key], str):
            raise RequestError(
                f"{where}.{key} must be a string, not {type(message[key]).__name__}."
            )
    role = message["role"]
    if role not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}, not {role!r}.")
    known = ("role", "content", *_MORE_KEYS.get(role, ()))
    unknown = [key for key in message if key not in known]
    if unknown:
        raise RequestError(f"{where} has an unknown key {unknown[0]!r}; known: {', '.join(known)}.")
    try:
        more = {key: json.loads(json.dumps(message[key])) for key in known[2:] if key in message}
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{where} has a value that is not plain JSON.") from None
    return {"role": str(role), "content": str(message["content"]), **more}


def _why(error: Exception) -> str:
    """What to tell the user of a template's failure."""
    import jinja2

    detail = str(error)[:500] or type(error).__name__
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"The model's chat template is not valid (line {error.lineno}): {detail}"
    if type(error) is jinja2.TemplateError:  # its own raise_exception
        return f"The model's chat template refuses these messages: {detail}"
    return f"The model's chat template failed on these messages: {detail}"


class _Budget:
    """Time and length of one rendering."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_RENDER_SECONDS
        self._chars = 0

    def tick(self) -> str:
        if time.monotonic() > self._deadline:
            raise RequestError(
                f"The model's chat template ran for more than {MAX_RENDER_SECONDS:g} seconds."
            )
        return ""

    def spend(self, chars: int) -> None:
        self._chars += chars
        _check_size(self._chars, MAX_RENDERED_CHARS)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise RequestError(
            f"The model's chat template makes more than {MAX_RENDERED_CHARS:,} characters, or a "
            "giant number."
        )


def _bounded(value: Any) -> Any:
    """Stops what grows in a loop while it is still small."""
    if isinstance(value, str | list | tuple):
        _check_size(len(value), MAX_RENDERED_CHARS)
    elif isinstance(value, int):
        _check_size(value.bit_length(), _MAX_BITS)
    return value


# ---------------------------------------------------------------- Jinja


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    """The template with a look at the clock in every loop and macro."""
    from jinja2 import nodes

    environment = _environment()
    tree = environment.parse(source)
    repeated: list[Any] = [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]
    for node in repeated:
        node.body.insert(0, nodes.ExprStmt(_call(_TICK), lineno=1))
    for concat in list(tree.find_all(nodes.Concat)):
        concat.nodes = [_call(_BOUNDED, nodes.Concat(concat.nodes, lineno=concat.lineno))]
    tree.set_environment(environment)
    return environment.from_string(tree)


def _call(name: str, *args: Any) -> Any:
    from jinja2 import nodes

    return nodes.Call(nodes.Name(name, "load"), list(args), [], None, None, lineno=1)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Imports Jinja at first use: a door that takes plain text never needs it."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's text for training; it renders as it is."""

        tags = {"generation"}  # noqa: RUF012 - Jinja declares it as an instance's

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_render"), [], [], body, lineno=line)

        def _render(self, caller: Callable[[], str]) -> str:
            return caller()

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also keeps arithmetic from making giants."""

        intercepted_binops = frozenset(("+", "*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and isinstance(left, int) and isinstance(right, int):
                _check_size(left.bit_length() * right, _MAX_BITS)
            for value, times in ((left, right), (right, left)) if operator == "*" else ():
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    _check_size(len(value) * times, MAX_RENDERED_CHARS)
            return _bounded(super().call_binop(context, operator, left, right))

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes for HTML.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals[_BOUNDED] = _bounded
    return environment
