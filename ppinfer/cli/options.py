"""Options of commands, made from ``EngineConfig`` and ``SamplingParams``.

A setting's name, type, default and help are written there and nowhere else.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import msgspec
import typer

from ppinfer.cli.plan_file import read_settings
from ppinfer.config import EngineConfig, settings_help
from ppinfer.errors import RequestError
from ppinfer.grammar import Grammar
from ppinfer.sampling import SamplingParams

ResultT = TypeVar("ResultT")

_FLAGS = {"pp_size": ("--pp-size", "-pp")}
_WRITTEN_AS = {"kv_cache_memory": str | None, "partition": str}
"""Settings that a command line gives in another form than the dataclass holds."""

_GRAMMAR_HELP = (
    "What the output must look like: json (any object), regex:PATTERN, schema:FILE (a JSON schema) "
    "or lark:FILE."
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A folder, a .gguf file, a hub id, or demo.", show_default=False
    ),
]


def model_name(model: str) -> str:
    """A hub id as it is; of a folder or file only its name, so that no path is shown."""
    path = Path(model)
    return path.resolve().name if path.exists() else model


@dataclass(frozen=True)
class OptionGroup:
    """Options that a command takes as one dictionary, under ``name``, of what the user changed."""

    name: str
    panel: str
    types: Mapping[str, Any]
    defaults: Mapping[str, Any]
    help: Mapping[str, str]
    has_plan: bool = False

    def parameters(self) -> list[inspect.Parameter]:
        found = [self._parameter(name, hint) for name, hint in self.types.items()]
        return [*found, _plan_parameter(self.panel)] if self.has_plan else found

    def take(self, values: dict[str, Any]) -> dict[str, Any]:
        """Remove this group's options from ``values``; those that are not at their default.

        What a plan says holds where nothing else was given.
        """
        taken: dict[str, Any] = {}
        for name in self.types:
            taken[name] = not values.pop(f"no_{name}") if self._is_on(name) else values.pop(name)
        changed = {name: value for name, value in taken.items() if value != self.defaults[name]}
        plan = values.pop("plan") if self.has_plan else None
        return changed if plan is None else read_settings(plan) | changed

    def _is_on(self, name: str) -> bool:
        """Whether a flag turns the setting off."""
        return self.defaults[name] is True

    def _parameter(self, name: str, hint: Any) -> inspect.Parameter:
        default, text = self.defaults[name], self.help[name]
        flags = _FLAGS.get(name, ("--" + name.replace("_", "-"),))
        if self._is_on(name):
            default, text = False, f"Do not {text[:1].lower()}{text[1:]}"
            flags, name = ("--no-" + name.replace("_", "-"),), f"no_{name}"
        option = typer.Option(
            default,
            *flags,
            help=text,
            rich_help_panel=self.panel,
            show_default=default not in (None, []) and hint is not bool,
        )
        # A choice is checked by the dataclass, whose message says what the choices are.
        annotation = str if get_origin(hint) is Literal else hint
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation
        )


def _plan_parameter(panel: str) -> inspect.Parameter:
    option = typer.Option(
        None,
        "--plan",
        metavar="FILE",
        help="Settings out of a file that ppinfer plan --json made; options go before it.",
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        "plan", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=Path | None
    )


def engine_options(*names: str) -> OptionGroup:
    """The settings of these names, or all that matter to a command and a plan of them, as
    ``settings``."""
    hints = get_type_hints(EngineConfig)
    known = {item.name: item.default for item in fields(EngineConfig)}
    assert MISSING not in known.values()
    chosen = names or tuple(name for name in known if name != "new_length")
    return OptionGroup(
        name="settings",
        panel="Pipeline",
        types={name: _WRITTEN_AS.get(name, hints[name]) for name in chosen},
        defaults={name: known[name] for name in chosen},
        help=settings_help(),
        has_plan=not names,
    )


def sampling_options(*without: str, **defaults: Any) -> OptionGroup:
    """All sampling parameters but some, as ``sampling``; ``defaults`` are those of one command."""
    types: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for item in msgspec.structs.fields(SamplingParams):
        if item.name in without:
            continue
        types[item.name] = item.type
        values[item.name] = item.default
    written = {
        "stop": list[str], "stop_token_ids": list[int], "logit_bias": list[str],
        "grammar": str | None,
    }  # fmt: skip
    types |= {name: written[name] for name in written if name in types}
    values |= {name: [] for name in ("stop", "stop_token_ids", "logit_bias")}
    return OptionGroup(
        name="sampling",
        panel="Sampling",
        types=types,
        defaults=values | defaults,
        help=attribute_help(SamplingParams) | {"grammar": _GRAMMAR_HELP},
    )


def make_params(sampling: Mapping[str, Any], **defaults: Any) -> SamplingParams:
    """What the user gave and a command's own defaults, checked."""
    given = defaults | dict(sampling)
    if "logit_bias" in given:
        given["logit_bias"] = dict(map(_bias, given["logit_bias"]))
    if isinstance(written := given.get("grammar"), str):
        given["grammar"] = _grammar(written)
    return SamplingParams(**given)


def _bias(written: str) -> tuple[int, float]:
    """A token and its bias, from ``ID=BIAS``."""
    token, _, bias = written.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise RequestError(f"logit_bias must be written ID=BIAS, not {written!r}.") from None


def _grammar(written: str) -> Grammar:
    """What ``_GRAMMAR_HELP`` says, as a grammar."""
    kind, separator, what = written.partition(":")
    if written == "json":
        return Grammar.json_object()
    if not separator or kind not in ("regex", "schema", "lark"):
        raise RequestError(
            f"grammar must be written json, regex:PATTERN, schema:FILE or lark:FILE, not "
            f"{written!r}."
        )
    if kind == "regex":
        return Grammar.regex(what)
    try:
        text = Path(what).read_text(encoding="utf-8")
        return Grammar.lark(text) if kind == "lark" else Grammar.json_schema(json.loads(text))
    except OSError as error:
        raise RequestError(f"The grammar {what} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        wanted = "text" if kind == "lark" else "JSON"
        raise RequestError(f"{what} is not a file of {wanted} in UTF-8: {error}.") from None


def takes(*groups: OptionGroup) -> Callable[[Callable[..., ResultT]], Callable[..., ResultT]]:
    """A command that gets each group's options as one dictionary."""

    def decorate(command: Callable[..., ResultT]) -> Callable[..., ResultT]:
        @functools.wraps(command)
        def run(**values: Any) -> ResultT:
            for group in groups:
                values[group.name] = group.take(values)
            return command(**values)

        names = {group.name for group in groups}
        own = inspect.signature(command, eval_str=True)
        parameters = [item for item in own.parameters.values() if item.name not in names]
        parameters += [item for group in groups for item in group.parameters()]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def attribute_help(documented: type) -> dict[str, str]:
    """Name to sentence, from the part ``Attributes:`` of a docstring."""
    text = inspect.getdoc(documented) or ""
    _, _, section = text.partition("Attributes:\n")
    section, _, _ = section.partition("\n\n")
    entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, flags=re.MULTILINE)
    found = {name: _sentence(words) for name, words in entries}
    return found | dict.fromkeys(_names(documented) - found.keys(), "")


def _names(documented: type) -> set[str]:
    return set(get_type_hints(documented))


def _sentence(words: str) -> str:
    words = " ".join(words.replace("``", "").split())
    return words[:1].upper() + words[1:]
