"""The page, in a real browser."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.browser import Browser, Page, chromium, running_browser
from support.checkpoints import config_alone
from support.exposition import Samples, of, samples
from support.fake_async_engine import RunningServer, running_server, wait_until
from support.processes import Marked
from support.small_tokenizers import CHATML, train_byte_level

from ppinfer.errors import EngineClosedError
from ppinfer.server import observed
from ppinfer.server.page import document

LANES = "[...document.querySelectorAll('canvas')].map((one) => one.toDataURL()).join()"
ROWS = "document.querySelectorAll('#requests tbody tr').length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("there is no Chromium here (on Debian: apt-get install chromium)")
    with running_browser(program) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.page()
    page.look_like(1280, 860)
    yield page
    page.close()


def address(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.port}/"


def open_page(page: Page, server: RunningServer) -> None:
    page.open(address(server))
    page.wait("document.getElementById('status').textContent === 'Serving'")


def is_clean(page: Page, server: RunningServer) -> None:
    """Nothing went wrong, and nothing was asked of anybody else."""
    assert page.errors == []
    assert all(url.startswith((address(server), "data:", "about:")) for url in page.asked)


def status(page: Page, words: str) -> None:
    page.wait(f"document.getElementById('status').textContent.startsWith({json.dumps(words)})")


def banner(page: Page, words: str) -> None:
    page.wait(f"document.getElementById('banner').innerText === {json.dumps(words)}")


# ---------------------------------------------------------------- without a browser


def test_the_document_is_all_there_is(server: RunningServer) -> None:
    answer = server.request("GET", "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    text = answer.body.decode()
    policy = answer.headers["content-security-policy"]
    for tag in ("style", "script"):
        (part,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), "no outside assets"
    assert not re.search(r"<[^>]+\son\w+=|<[^>]+\sstyle=", text), "no inline handlers or styles"
    assert "small" not in re.sub(r"<script>.*|<style>.*?</style>", "", text, flags=re.S)
    assert server.request("HEAD", "/").status == 200


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_can_be_read(theme: int) -> None:
    css = document()[0].decode().split("<style>")[1]
    colours = [dict(re.findall(r"--([\w-]+): (#\w+)", part)) for part in css.split("@media")[:2]]
    found = colours[0] | colours[theme]
    for words, back in [
        ("text", "card"), ("text", "back"), ("muted", "card"), ("muted", "back"),
        ("on-accent", "accent"), ("good", "back"), ("warn", "back"), ("bad", "back"),
        ("warn", "warn-back"), ("bad", "bad-back"), ("text", "track"), ("bad", "card"),
    ]:  # fmt: skip
        assert contrast(found[words], found[back]) >= 4.5, (words, back)


def contrast(one: str, other: str) -> float:
    """As WCAG has it."""

    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


# ---------------------------------------------------------------- with one


@pytest.mark.slow
def test_lanes_requests_and_a_cancel(page: Page, server: RunningServer) -> None:
    server.engine.endless, server.engine.pause = True, 0.02
    open_page(page, server)
    assert page.text("#no-requests") == "None."
    with asked(server, "job-1"), asked(server, "job-2"):
        page.wait(f"{ROWS} === 2")
        page.wait("document.getElementById('legend').textContent.includes('micro-batch B')")
        assert page.text(".lane strong") == "Stage 0"
        page.wait("document.querySelector('.shares').textContent.includes('50% busy')")
        drawn = page.run(LANES)
        page.wait(f"{LANES} !== {json.dumps(drawn)}")
        page.wait(f"{PAINTED}.join() === 'slot-0,slot-1,input'")
        page.click("#pause")
        drawn = page.run(LANES)
        time.sleep(0.4)
        assert page.run(LANES) == drawn
        page.click("#pause")
        page.wait("document.querySelector('#chart-tokens .value').textContent > '0'")
        page.wait("document.querySelector('#chart-queue .value').innerText.startsWith('2running')")
        page.wait("document.querySelector('#chart-kv .value').innerText.startsWith('20%')")
        page.wait("document.querySelectorAll('#chart-tokens path').length === 2")
        page.run("document.querySelector('[aria-label=\"Cancel job-1\"]').focus()")
        page.press("Enter")
        page.wait(f"{ROWS} === 1")
        assert page.text("#requests tbody .id") == "job-2"
        wait_until(lambda: server.engine.aborted == 1)
        focused = page.run("document.activeElement.getAttribute('aria-label')")
        assert focused == "Cancel job-2", "the focus is not lost with the row"
        page.click("[aria-label='Cancel job-2']")
        page.wait("!document.getElementById('no-requests').hidden")
    is_clean(page, server)


@contextmanager
def asked(server: RunningServer, name: str) -> Iterator[None]:
    """A stream that goes on until it is cancelled or left."""
    server.engine.info.max_model_len = 10**6
    body = json.dumps({"prompt": "Hi", "max_tokens": 10**5, "stream": True})
    headers = {"X-Request-Id": name, "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", body, headers)
    with connection.getresponse() as answer:
        assert answer.status == 200
        try:
            yield
        finally:
            connection.close()


PAINTED = """
(() => {
  const lane = document.querySelector("canvas");
  const copy = new OffscreenCanvas(lane.width, lane.height);
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(lane, 0, 0);
  const { data } = context.getImageData(0, 0, copy.width, copy.height), found = new Set();
  for (let i = 0; i < data.length; i += 4) found.add(data.slice(i, i + 3).join());
  const style = getComputedStyle(document.documentElement);
  return ["slot-0", "slot-1", "slot-2", "plan", "input", "send"].filter((name) => {
    const colour = style.getPropertyValue(`--${name}`).match(/\\w\\w/g);
    return found.has(colour.map((part) => parseInt(part, 16)).join());
  });
})()
"""
"""Which colours of the style are in the first lane."""


GROWTH_IN_TWO_FRAMES = """
new Promise((done) => {
  const length = () => document.querySelector('.message:last-child').textContent.length;
  const before = length();
  requestAnimationFrame(() => requestAnimationFrame(() => done(length() - before)));
})
"""


@pytest.mark.slow
def test_a_chat_by_keyboard(page: Page, server: RunningServer) -> None:
    server.engine.info.max_model_len = 10**6
    server.engine.pause, server.engine.held_at = 0.02, 5
    open_page(page, server)
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.press("Enter")
    page.press("Tab")  # the link leads to the field; some browsers only put the reader there
    page.run("document.getElementById('chat-text').focus()")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    assert page.run("document.querySelectorAll('.message').length") == 0, "nothing to send"
    page.type("Two")
    page.press("Enter", shift=True)
    page.type("lines")
    assert page.run("document.getElementById('chat-text').value") == "Two\nlines"
    page.press("Enter")
    page.wait("document.querySelector('.message.assistant').textContent.includes('quick')")
    assert "jumps" not in page.text(".message.assistant"), "it comes in parts"
    server.engine.held_at = None
    page.wait("document.getElementById('chat-told').textContent === 'The answer is complete.'")
    assert "brown fox — 今日は 🙂 jumps" in page.text(".message.assistant")
    assert re.search(r"\d+ tokens · [\d.,]+ tokens/s · first after", page.text(".message .facts"))
    assert page.run("document.getElementById('chat-told').getAttribute('role')") == "status"
    server.engine.endless = True
    page.type("Again")
    page.press("Enter")
    page.wait("document.querySelectorAll('.message.assistant')[1]?.textContent.length > 30")
    assert len(server.engine.calls[1].ids) > len(server.engine.calls[0].ids), "a conversation"
    page.press("Escape")
    page.wait("document.querySelector('.message:last-child .facts')?.textContent === 'Stopped.'")
    wait_until(lambda: server.engine.aborted == 1)
    server.engine.pause = 0.0
    page.type("As fast as you can")
    page.press("Enter")
    page.wait("document.querySelector('.message:last-child').textContent.length > 30_000")
    assert page.run(GROWTH_IN_TWO_FRAMES) < 400_000, "the page is not held up by what it is told"
    page.press("Escape")
    page.wait("document.querySelector('.message:last-child .facts')?.textContent === 'Stopped.'")
    reached = set()
    page.run("document.activeElement.blur()")
    for _ in range(12):
        page.press("Tab")
        reached.add(page.run("document.activeElement.id"))
    assert reached >= {"closer", "wider", "pause", "chat-new", "chat-log", "chat-text", "chat-send"}
    is_clean(page, server)


LISTEN_TO_PICTURES = """
(() => {
  const { clearRect } = CanvasRenderingContext2D.prototype;
  window.pictures = [];
  CanvasRenderingContext2D.prototype.clearRect = function (...box) {
    if (this.canvas === document.querySelector("canvas")) pictures.push(performance.now());
    clearRect.apply(this, box);
  };
})()
"""
"""Notes when the first lane is drawn."""


LONG_CELLS = {
    "#requests td.state": "prefill, 12 answers",
    "#requests td[data-name=prompt]": "1,048,576",
    "#requests td[data-name=new]": "1,048,576",
    "#chart-tokens .value": "1,234,567",
    "#window": "12.5 s",
    "#others": "and 1,234 of other keys",
    "#status": "Stage 1 has not answered for 127 s",
}
"""The longest that some parts of the page may have to show."""


@pytest.mark.slow
def test_sizes_themes_and_motion(page: Page, server: RunningServer) -> None:
    server.engine.endless, server.engine.pause = True, 0.02
    open_page(page, server)
    with asked(server, "a" * 120):
        page.wait(f"{ROWS} === 1")
        backs = set()
        for width, dark in ((1280, False), (360, True), (360, False), (800, True)):
            page.look_like(width, 800, dark)
            assert page.run("document.documentElement.scrollWidth") == width
            backs.add(page.run("getComputedStyle(document.body).backgroundColor"))
        assert len(backs) == 2
        page.run(LISTEN_TO_PICTURES)
        page.look_like(360, 800, still=True)
        for cell, text in LONG_CELLS.items():
            page.run(f"document.querySelector({cell!r}).textContent = {text!r}")
            assert page.run("document.documentElement.scrollWidth") == 360, cell
        page.wait("pictures.at(-1) - pictures.at(-2) > 990")  # where motion is not wanted
    is_clean(page, server)


@pytest.mark.slow
def test_a_server_with_a_key(page: Page) -> None:
    with running_server(api_keys=("secret",)) as server:
        page.open(address(server))
        page.wait("!document.getElementById('lock').hidden")
        assert page.run("document.getElementById('content').hidden")
        assert page.run("document.activeElement.id") == "key"
        page.type("guess")
        page.press("Enter")
        page.wait("document.getElementById('lock-words').textContent.includes('not know this key')")
        page.type("secret")
        page.press("Enter")
        status(page, "Serving")
        assert page.run("JSON.stringify({...sessionStorage})") == '{"ppinfer-key":"secret"}'
        page.open(address(server))
        status(page, "Serving")
        page.wait("!document.getElementById('forget').hidden")
        page.click("#forget")
        page.wait("document.getElementById('lock')?.hidden === false")
        assert "secret" not in "".join(page.asked)


@pytest.mark.slow
def test_it_says_how_the_server_is(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "PATIENCE", 0.1)
    with running_server(load=False) as server:
        page.open(address(server))
        status(page, "The model is being loaded")
        server.loop.call_soon_threadsafe(server.app.service.open, server.engine)
        status(page, "Serving")
        assert page.run("document.getElementById('banner').hidden")
        server.engine.silent_for = 7.0
        status(page, "Stage 1 has not answered for 7 s")
        banner(page, "Stage 1 has not answered for 7 s")
        server.engine.silent_for = 0.0
        status(page, "Serving")
        server.engine.state_error = TimeoutError()
        status(page, "The engine does not answer")
        server.engine.state_error, server.engine.is_alive = EngineClosedError("gone"), False
        status(page, "The engine has ended")
        is_clean(page, server)
    status(page, "The server is gone")
    banner(page, "The server is gone; trying to reach it again")
    with running_server(port=server.port):
        status(page, "Serving")


# ---------------------------------------------------------------- a real server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model that can chat; its weights are made up."""
    tokenizer = train_byte_level()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    return config_alone(
        tmp_path,
        vocab_size=tokenizer.get_vocab_size(),
        num_hidden_layers=4,
        max_position_embeddings=32_768,
        eos_token_id=None,  # so that an answer goes on until something ends it
    )


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    marked = Marked.new()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppinfer.cli", "serve", str(folder), "--load-format", "dummy",
         "-pp", "2", "--port", "0", "--kv-cache-memory", "20MB", "--partition", "even",
         "--num-micro-batches", "2", "--max-prefill-tokens", "64"],
        stderr=subprocess.PIPE, text=True, env=marked.environment,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if " at http://" in line)
        yield process, int(line.split(":")[-1].split("/")[0])
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        marked.assert_all_gone()


def ask(port: int, method: str, path: str, body: object = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def figures(port: int) -> Samples:
    """As soon as the engine answers."""
    while not of(found := samples(ask(port, "GET", "/metrics")), "engine_up"):
        pass
    return found


@pytest.mark.slow
def test_a_real_server_until_it_is_killed(page: Page, folder: Path) -> None:
    with served(folder) as (process, port):
        before = figures(port)
        for n in (1, 2):
            asked_for = {"prompt": [5] * 20, "max_tokens": 7, "n": n, "ignore_eos": True}
            ask(port, "POST", "/v1/completions", asked_for)

        def grew(name: str, **labels: str) -> float:
            return of(figures(port), name, **labels) - of(before, name, **labels)

        wait_until(lambda: grew("stage_steps_total", stage="1") >= 14)
        assert grew("prompt_tokens_total") == 60
        assert grew("generated_tokens_total") == 21
        assert grew("prefix_cache_hit_tokens_total") >= 16
        assert grew("requests_finished_total", reason="length") == 3
        assert grew("end_to_end_seconds_count") == 3
        assert grew("inter_token_seconds_count") == 18
        page.open(f"http://127.0.0.1:{port}/")
        status(page, "Serving")
        page.run("document.getElementById('chat-text').focus()")
        page.type("Hi")
        page.press("Enter")
        page.wait("document.getElementById('legend').textContent.includes('micro-batch A')")
        page.wait(f"{ROWS} === 1")
        drawn = page.run(LANES)
        page.wait(f"{LANES} !== {json.dumps(drawn)}")
        page.wait("document.querySelector('.message.assistant').textContent.length > 40")
        assert page.errors == []
        process.send_signal(signal.SIGKILL)
        status(page, "The server is gone")
        page.wait(
            "document.querySelector('.message .problem')?.textContent === 'The server is gone.'"
        )
