"""Devices and links: what they hold, how fast they read, compute and send.

The table is ``hardware.toml``, each entry with its source; a user's own file of the same form adds
to it, or replaces entries of the same name.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ppinfer.errors import ConfigError

DTYPES = ("fp32", "bf16", "fp16")

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


@cache
def load_catalog(path: Path | None = None) -> Catalog:
    """The built-in table, with a user's file on top.

    Raises:
        ConfigError: the file cannot be read, or an entry in it is not as it should be.
    """
    own = resources.files("ppinfer.planner").joinpath("hardware.toml")
    catalog = _read(own.read_text(encoding="utf-8"), "hardware.toml")
    if path is None:
        return catalog
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The hardware file {path} cannot be read: {error}.") from error
    added = _read(text, str(path))
    return Catalog({**catalog.devices, **added.devices}, {**catalog.links, **added.links})


def _read(text: str, where: str) -> Catalog:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no TOML: {error}.") from error
    unknown = table.keys() - {"device", "link"}
    if unknown:
        raise ConfigError(
            f"{where} has a table [{min(unknown)}]; devices are written [device.NAME], links "
            "[link.NAME]."
        )
    devices, links = table.get("device", {}), table.get("link", {})
    return Catalog(
        {
            name: _device(name, _Entry(entry, f"{where}: device {name}"))
            for name, entry in devices.items()
        },
        {
            name: _link(name, _Entry(entry, f"{where}: link {name}"))
            for name, entry in links.items()
        },
    )


class _Entry:
    """One table of the file, whose keys are taken one by one."""

    def __init__(self, entry: Any, where: str) -> None:
        if not isinstance(entry, dict):
            raise ConfigError(f"{where} must be a table.")
        self._left = dict(entry)
        self._where = where

    def number(self, key: str, default: float | None = None) -> float:
        value = self._left.pop(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < math.inf
        ):
            raise ConfigError(f"{self._where}: {key} must be a number from 0 on, not {value!r}.")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if not value:
            raise ConfigError(f"{self._where}: {key} must be above 0.")
        return value

    def source(self) -> str:
        value = self._left.pop("source", "")
        if not isinstance(value, str):
            raise ConfigError(f"{self._where}: source must be text, not {value!r}.")
        return value

    def has(self, key: str) -> bool:
        return key in self._left

    def end(self) -> None:
        if self._left:
            raise ConfigError(f"{self._where} has an unknown key {min(self._left)!r}.")


def _device(name: str, entry: _Entry) -> Device:
    memory = int(entry.positive("memory_gb") * 1e9)
    device = Device(
        name=name,
        memory=memory,
        usable=int(entry.positive("usable_gb", 0.92 * memory / 1e9) * 1e9),
        bandwidth=entry.positive("bandwidth_gb_s") * 1e9,
        peak={
            dtype: entry.positive(f"{dtype}_tflops") * 1e12
            for dtype in DTYPES
            if entry.has(f"{dtype}_tflops")
        },
        source=entry.source(),
    )
    entry.end()
    if not device.peak:
        raise ConfigError(f"device {name} needs fp32_tflops, bf16_tflops or fp16_tflops.")
    if device.usable > memory:
        raise ConfigError(f"device {name} has usable_gb above memory_gb.")
    return device


def _link(name: str, entry: _Entry) -> Link:
    link = Link(
        name=name,
        bandwidth=entry.positive("bandwidth_gb_s") * 1e9,
        latency=entry.number("latency_us") * 1e-6,
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
