"""The catalogue of devices and links, and what a user's own file may hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import ppinfer
from ppinfer.errors import ConfigError
from ppinfer.planner.hardware import DTYPES, Link, load_catalog

CATALOG = load_catalog()
DEVICES = {
    "t4", "v100-16", "v100-32", "a10", "a30", "l4", "l40s", "rtx3090", "rtx4090", "rtx5090",
    "a100-40", "a100-80", "a800", "h100", "h200", "b200", "mi300x",
}  # fmt: skip
LINKS = {
    "pcie3", "pcie4", "pcie5", "nvlink2", "nvlink3", "nvlink4", "nvlink5", "nvlink-a800",
    *(f"ethernet-{rate}" for rate in (1, 10, 25, 40, 50, 100, 200, 400)),
    *(f"infiniband-{rate}" for rate in ("fdr", "edr", "hdr", "ndr")),
    "loopback", "shm",
}  # fmt: skip
CARD = "memory_gb = 32\nbandwidth_gb_s = 900\nbf16_tflops = 120\n"


def test_what_people_have_is_there_with_its_source() -> None:
    assert CATALOG.devices.keys() >= DEVICES
    assert CATALOG.links.keys() >= LINKS
    for device in CATALOG.devices.values():
        assert len(device.source) > 20, device.name
        assert 14e9 < device.usable < device.memory < 1e12, device.name
        assert 2e11 < device.bandwidth < 1e13, device.name
        assert set(device.peak) <= set(DTYPES)
        assert device.peak["fp32"] < device.peak["fp16"], f"{device.name}: tensor cores"
        assert device.peak.get("bf16", device.peak["fp16"]) == device.peak["fp16"]
    for link in CATALOG.links.values():
        assert len(link.source) > 20, link.name
        assert 1e8 < link.bandwidth < 1e12, link.name
        assert 1e-6 < link.latency < 1e-3, link.name
        said = re.search("latency: estimate|docs/results", link.source)
        assert said, f"{link.name}: where is its latency from?"


def test_what_does_not_compute_in_bf16() -> None:
    assert {name for name, found in CATALOG.devices.items() if "bf16" not in found.peak} == {
        "t4", "v100-16", "v100-32",
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"^t4 does not compute in bf16; choose one of fp32, fp16"
    ):
        CATALOG.device("t4").require("bf16")


@pytest.mark.parametrize("rate", [1, 10, 25, 40, 50, 100, 200, 400])
def test_ethernet_has_the_rate_of_its_name(rate: int) -> None:
    assert CATALOG.link(f"ethernet-{rate}").bandwidth == pytest.approx(rate * 1e9 / 8)


def test_a_message_takes_its_latency_and_its_bytes() -> None:
    link = Link(name="wire", bandwidth=2e9, latency=1e-5, source="")
    assert link.seconds(0) == 1e-5
    assert link.seconds(4e6) == pytest.approx(2.01e-3)


# ---------------------------------------------------------------- written on a command line


def test_devices_in_the_order_of_the_pipeline() -> None:
    names = [device.name for device in CATALOG.parse_devices("a100-80, l4:2,t4:1")]
    assert names == ["a100-80", "l4", "l4", "t4"]


@pytest.mark.parametrize("written", ["a10:0", "a10:-1", "a10:two", "a10:1025", "a10:1.5"])
def test_a_count_that_is_none(written: str) -> None:
    with pytest.raises(ConfigError, match="must be written NAME:COUNT, such as a10:2") as caught:
        CATALOG.parse_devices(f"t4,{written}")
    assert written in str(caught.value)


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown device 'a100-8'; did you mean a100-80\?") as e:
        CATALOG.parse_devices("a100-8:2")
    assert "b200, h100" in str(e.value)
    assert "--hardware FILE" in str(e.value)
    with pytest.raises(ConfigError, match="Unknown device ''; Known: a10, "):
        CATALOG.parse_devices("")


def test_one_link_for_all_or_one_for_each() -> None:
    assert [link.name for link in CATALOG.parse_links("pcie4", 3)] == ["pcie4"] * 2
    assert CATALOG.parse_links("pcie4", 1) == []
    unequal = CATALOG.parse_links("nvlink3, ethernet-25", 3)
    assert [link.name for link in unequal] == ["nvlink3", "ethernet-25"]
    with pytest.raises(ConfigError, match="2 links were given for 5 devices; give one for all, or"):
        CATALOG.parse_links("pcie4,pcie4", 5)
    with pytest.raises(ConfigError, match=r"Unknown link 'pcie'; did you mean pcie"):
        CATALOG.parse_links("pcie", 2)


# ---------------------------------------------------------------- a file of one's own


def read(folder: Path, text: str):
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return load_catalog(path)


def test_a_file_adds_and_replaces(tmp_path: Path) -> None:
    own = read(
        tmp_path,
        f'[device.mine]\n{CARD}source = "a test"\n[device.a10]\n{CARD}usable_gb = 30\n'
        "[link.wire]\nbandwidth_gb_s = 11\nlatency_us = 0\n",
    )
    mine = own.device("mine")
    assert (mine.memory, mine.usable, mine.bandwidth) == (32 * 10**9, 29_440_000_000, 900e9)
    assert mine.peak == {"bf16": 120e12}
    assert own.device("a10").usable == 30 * 10**9
    assert own.link("wire") == Link(name="wire", bandwidth=11e9, latency=0.0, source="")
    assert own.device("t4") == CATALOG.device("t4")
    assert "mine" not in load_catalog().devices, "nothing stays behind"
    assert read(tmp_path, "").devices == CATALOG.devices


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    assert "one" in read(tmp_path, f"[device.one]\n{CARD}").devices
    assert "two" in read(tmp_path, f"[device.two]\n{CARD}").devices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[device.x", "own.toml is no TOML: "),
        ("[gpu.x]\n", "has 'gpu' at its top; devices are written [device.NAME], links [link.NAME]"),
        ("memory_gb = 3", "has 'memory_gb' at its top; devices are"),
        ("device = 3", "a device is written as a table, [device.NAME]"),
        ("[[link]]\nx = 1", "a link is written as a table, [link.NAME]"),
        ("[device]\nmine = 3", "a device is written as a table, [device.mine]"),
        (f"[device.'a:b']\n{CARD}", "device 'a:b' needs a name without colons, commas and blanks"),
        (f"[device.'']\n{CARD}", "device '' needs a name without"),
        ("[device.x]\nbf16_tflops = 1", "device x needs memory_gb, a number"),
        (f"[device.x]\n{CARD}ram = 1", "has an unknown key 'ram'; known are memory_gb, usable_gb,"),
        (f"[device.x]\n{CARD}usable_gb = 33", "device x: usable_gb must be at most memory_gb"),
        (f"[device.x]\n{CARD}source = 3", "device x: source must be text, not 3"),
        (
            "[device.x]\nmemory_gb = 1\nbandwidth_gb_s = 1",
            "device x needs fp32_tflops, bf16_tflops or fp16_tflops",
        ),
        ("[link.x]\nlatency_us = 1", "link x needs bandwidth_gb_s, a number"),
        ("[link.x]\nbandwidth_gb_s = 1", "link x needs latency_us, a number"),
        (
            "[link.x]\nbandwidth_gb_s = 1\nlatency_us = -1",
            "link x: latency_us must be a number from 0 to 1e+09, not -1",
        ),
        *(
            (
                f"[link.x]\nlatency_us = 1\nbandwidth_gb_s = {value}",
                "link x: bandwidth_gb_s must be a number from 1e-06 to 1e+09, not ",
            )
            for value in ("0", "-1", "nan", "inf", "true", "'11'", "[1]", "1e300", "1e-300")
        ),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert words in said
    assert "own.toml" in said
    assert said.endswith(".")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=r"missing.toml cannot be read: No such file or dir"):
        load_catalog(missing)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary.toml is no UTF-8 text\.$"):
        load_catalog(binary)


def test_every_file_of_the_package_is_shipped() -> None:
    """Checked against the globs of ``pyproject.toml``: building a wheel takes longer."""
    root = Path(ppinfer.__file__).parent
    text = (root.parent / "pyproject.toml").read_text(encoding="utf-8")
    globs = tomllib.loads(text)["tool"]["setuptools"]["package-data"]["ppinfer"]
    shipped = {path for glob in globs for path in root.glob(glob)}
    there = {
        path
        for path in root.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert not there - shipped
    assert root / "planner" / "hardware.toml" in shipped
