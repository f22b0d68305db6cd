"""``ppinfer chat --url`` and ``ppinfer bench serve`` with a server of others: transformers' own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from support.checkpoints import make_model, save_model
from support.fake_async_engine import small_tokenizer
from support.fake_engine import run
from support.small_tokenizers import CHATML

if find_spec("fastapi") is None:
    pytest.skip("transformers[serving] is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny random model, served in a thread of this process."""
    from transformers.cli.serve import Serve

    class Served(Serve):
        def start_server(self) -> None:
            """As the original does, and the loop is closed at the end."""
            self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()))
            self._thread.start()

    folder = tmp_path_factory.mktemp("served")
    tokenizer = small_tokenizer()
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "chat_template": CHATML,
            }
        )
    )
    save_model(make_model("llama", vocab_size=tokenizer.vocab_size), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        serve = Served(
            str(folder), device="cpu", host="127.0.0.1", port=0, log_level="error",
            non_blocking=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not serve.server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (listener,) = serve.server.servers[0].sockets
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        serve.kill_server()


def test_chat(url: str) -> None:
    result = run("chat", "--url", url, "--max-tokens", "6", stdin="Hi\nAgain\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout) > 6
    result = run("chat", "--url", url, "--top-k", "3", stdin="Hi\n")
    assert result.exit_code == 1
    assert "answers with status 422: Unexpected fields" in result.stderr
    result = run("chat", "--url", url, "--model", "other", stdin="Hi\n")
    assert result.exit_code == 1
    assert "answers with status 400: Server is pinned to" in result.stderr


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_load(url: str, endpoint: str) -> None:
    result = run(
        "bench", "serve", url, "--concurrency", "2", "--requests", "4", "--prompt-tokens", "30",
        "--output-tokens", "6", "--endpoint", endpoint, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (level,) = json.loads(result.stdout)["results"]["levels"]
    assert level["done"] == level["requests"] == 4
    assert 0 < level["output_tokens"] <= 24
    assert level["input_tokens"] >= 4 * 20
