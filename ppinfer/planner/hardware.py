"""Devices and links: what they hold, how fast they read, compute and send.

The table is ``hardware.toml``, each entry with its source; a user's own file of the same form adds
to it, or replaces entries of the same name.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ppinfer.errors import ConfigError

DTYPES = ("fp32", "bf16", "fp16")

_LEAST, _MOST = 1e-6, 1e9
"""What a figure of a file may be, in its unit."""

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, as its maker states it.

    Attributes:
        memory: bytes.
        usable: of these, what is left beside the driver's context.
        bandwidth: of its memory, in bytes/s.
        peak: dense operations/s (a multiplication and an addition are two) by dtype.
        source: where the figures are from.
    """

    name: str
    memory: int
    usable: int
    bandwidth: float
    peak: Mapping[str, float] = field(hash=False)
    source: str

    def require(self, dtype: str) -> None:
        """Raises ``ConfigError`` where the device does not compute in ``dtype``."""
        if dtype not in self.peak:
            raise ConfigError(
                f"{self.name} does not compute in {dtype}; choose one of {', '.join(self.peak)}."
            )


@dataclass(frozen=True, kw_only=True)
class Link:
    """From one device to the next, in one direction: bytes/s, and seconds before the first."""

    name: str
    bandwidth: float
    latency: float
    source: str

    def seconds(self, num_bytes: float) -> float:
        return self.latency + num_bytes / self.bandwidth


@dataclass(frozen=True)
class Catalog:
    """Devices and links by name."""

    devices: Mapping[str, Device]
    links: Mapping[str, Link]

    def device(self, name: str) -> Device:
        """Raises ``ConfigError`` for an unknown one."""
        return _named(self.devices, name, "device")

    def link(self, name: str) -> Link:
        """Raises ``ConfigError`` for an unknown one."""
        return _named(self.links, name, "link")

    def parse_devices(self, written: str) -> list[Device]:
        """``a10:2`` or ``a100-80:1,l4:2``: devices in the order of the pipeline.

        Raises:
            ConfigError: an unknown device, or a number that is none.
        """
        devices: list[Device] = []
        for part in written.split(","):
            name, _, count = part.strip().partition(":")
            if not count:
                count = "1"
            if not count.isdecimal() or not 1 <= int(count) <= 1024:
                raise ConfigError(
                    f"devices must be written NAME:COUNT, such as a10:2, with a count from 1 to "
                    f"1024, not {part.strip()!r}."
                )
            devices += [self.device(name)] * int(count)
        return devices

    def parse_links(self, written: str, num_stages: int) -> list[Link]:
        """``pcie4`` for all, or one for each neighbouring pair: ``nvlink3,ethernet-25,nvlink3``.

        Raises:
            ConfigError: an unknown link, or neither one nor one a pair.
        """
        links = [self.link(name.strip()) for name in written.split(",")]
        if len(links) == 1:
            return links * (num_stages - 1)
        if len(links) != num_stages - 1:
            raise ConfigError(
                f"{len(links)} links were given for {num_stages} devices; give one for all, or "
                f"{num_stages - 1}, one between each two."
            )
        return links


def load_catalog(path: Path | None = None) -> Catalog:
    """The built-in table, with a user's file on top.

    Raises:
        ConfigError: the file cannot be read, or an entry in it is not as it should be.
    """
    catalog = _own()
    if path is None:
        return catalog
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The hardware file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The hardware file {path} is no UTF-8 text.") from error
    added = _read(text, str(path))
    return Catalog({**catalog.devices, **added.devices}, {**catalog.links, **added.links})


@cache
def _own() -> Catalog:
    text = resources.files("ppinfer.planner").joinpath("hardware.toml").read_text(encoding="utf-8")
    return _read(text, "hardware.toml")


def _read(text: str, where: str) -> Catalog:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no TOML: {error}.") from error
    unknown = table.keys() - {"device", "link"}
    if unknown:
        raise ConfigError(
            f"{where} has {min(unknown)!r} at its top; devices are written [device.NAME], links "
            "[link.NAME]."
        )
    devices, links = _entries(table, "device", where), _entries(table, "link", where)
    return Catalog(
        {name: _device(name, entry) for name, entry in devices.items()},
        {name: _link(name, entry) for name, entry in links.items()},
    )


def _entries(table: Mapping[str, Any], kind: str, where: str) -> dict[str, _Entry]:
    entries = table.get(kind, {})
    for name, entry in entries.items() if isinstance(entries, dict) else [("NAME", None)]:
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: a {kind} is written as a table, [{kind}.{name}].")
        if not name.strip() or any(sign in name for sign in ":, "):
            raise ConfigError(
                f"{where}: {kind} {name!r} needs a name without colons, commas and blanks."
            )
    return {name: _Entry(entry, f"{where}: {kind} {name}") for name, entry in entries.items()}


class _Entry:
    """One table of the file, whose keys are taken one by one."""

    def __init__(self, entry: Mapping[str, Any], where: str) -> None:
        self._left = dict(entry)
        self._known: list[str] = []
        self.where = where

    def number(self, key: str, default: float | None = None, least: float = _LEAST) -> float:
        value = self._take(key, default)
        if value is None:
            raise ConfigError(f"{self.where} needs {key}, a number.")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= _MOST:
            raise ConfigError(
                f"{self.where}: {key} must be a number from {least:g} to {_MOST:g}, not {value!r}."
            )
        return float(value)

    def source(self) -> str:
        value = self._take("source", "")
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}: source must be text, not {value!r}.")
        return value

    def has(self, key: str) -> bool:
        self._known.append(key)
        return key in self._left

    def end(self) -> None:
        if self._left:
            raise ConfigError(
                f"{self.where} has an unknown key {min(self._left)!r}; known are "
                f"{', '.join(dict.fromkeys(self._known))}."
            )

    def _take(self, key: str, default: Any) -> Any:
        self._known.append(key)
        return self._left.pop(key, default)


def _device(name: str, entry: _Entry) -> Device:
    memory = int(entry.number("memory_gb") * 1e9)
    device = Device(
        name=name,
        memory=memory,
        usable=int(entry.number("usable_gb", 0.92 * memory / 1e9) * 1e9),
        bandwidth=entry.number("bandwidth_gb_s") * 1e9,
        peak={
            dtype: entry.number(f"{dtype}_tflops") * 1e12
            for dtype in DTYPES
            if entry.has(f"{dtype}_tflops")
        },
        source=entry.source(),
    )
    entry.end()
    if not device.peak:
        raise ConfigError(f"{entry.where} needs fp32_tflops, bf16_tflops or fp16_tflops.")
    if device.usable > memory:
        raise ConfigError(f"{entry.where}: usable_gb must be at most memory_gb.")
    return device


def _link(name: str, entry: _Entry) -> Link:
    link = Link(
        name=name,
        bandwidth=entry.number("bandwidth_gb_s") * 1e9,
        latency=entry.number("latency_us", least=0) * 1e-6,
        source=entry.source(),
    )
    entry.end()
    return link


def _named(table: Mapping[str, ItemT], name: str, kind: str) -> ItemT:
    found = table.get(name)
    if found is None:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"Unknown {kind} {name!r}; {hint}Known: {', '.join(sorted(table))}. Others are added "
            "with --hardware FILE."
        )
    return found
