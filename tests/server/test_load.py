"""64 clients at once, some of whom leave: nothing is lost, doubled, changed or left behind."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest
from support.checkpoints import make_model, random_ids, save_model
from support.exposition import Samples, of, samples
from support.fake_async_engine import wait_until
from support.processes import Marked

from ppinfer import PPInferEngine, SamplingParams

pytestmark = pytest.mark.slow

CLIENTS = 64
SECONDS = 3.0  # within which they come
KV_BYTES = 300_000  # per stage: a tenth of what all of them would hold together


@dataclass(frozen=True)
class Wanted:
    """``leaves`` is after how many tokens the client hangs up; 0 is before the first."""

    prompt: list[int]
    new_tokens: int
    seed: int | None
    arrives: float
    leaves: int | None

    def body(self) -> bytes:
        """Logprobs are asked for because each chunk then has the ids of its tokens."""
        return msgspec.json.encode(
            {
                "prompt": self.prompt, "max_tokens": self.new_tokens, "stream": True,
                "ignore_eos": True, "temperature": 0 if self.seed is None else 1, "logprobs": 0,
                "seed": self.seed,
            }
        )  # fmt: skip

    def params(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.new_tokens,
            ignore_eos=True,
            temperature=0.0 if self.seed is None else 1.0,
            seed=self.seed,
        )


def make_load() -> list[Wanted]:
    chance = random.Random(6)
    wanted = []
    for number in range(CLIENTS):
        new = chance.randint(8, 128)
        wanted.append(
            Wanted(
                prompt=random_ids(chance.randint(16, 700), seed=number),
                new_tokens=new,
                seed=number if number % 3 == 0 else None,
                arrives=chance.uniform(0, SECONDS),
                leaves=chance.choice([0, new // 2]) if number % 6 == 5 else None,
            )
        )
    return wanted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    model = make_model("llama", num_hidden_layers=2, max_position_embeddings=1024)
    folder = save_model(model, tmp_path_factory.mktemp("model"))
    vocabulary = {chr(0x4E00 + i): i for i in range(97)}  # a character a token
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=chr(0x4E00)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@dataclass
class Served:
    url: str
    marked: Marked

    def open_files(self) -> int:
        """Descriptors of the server, its driver and its stages, sockets among them."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.marked.processes())


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    marked = Marked.new()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppinfer.cli", "serve", str(folder), "-pp", "2", "--port", "0",
         "--dtype", "fp32", "--micro-batch-size", "16", "--num-micro-batches", "2",
         "--kv-cache-memory", str(KV_BYTES)],
        stderr=subprocess.PIPE, text=True, env=marked.environment,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if " at http://" in line:
                yield Served(line.rpartition(" at ")[2].strip().removesuffix("/v1"), marked)
                break
        process.terminate()
        assert process.wait(60) == 0
        marked.assert_all_gone()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


async def ask(session: aiohttp.ClientSession, url: str, wanted: Wanted) -> list[int]:
    """Token ids in the order they came; all of them, or those until the client hung up."""
    await asyncio.sleep(wanted.arrives)
    tokens: list[int] = []
    headers = {"content-type": "application/json"}
    request = session.post(f"{url}/v1/completions", data=wanted.body(), headers=headers)
    if wanted.leaves == 0:
        task = asyncio.ensure_future(request.__aenter__())
        await asyncio.sleep(0.02)
        task.cancel()
        return tokens
    async with request as answer:
        assert answer.status == 200
        async for line in answer.content:
            if line.startswith(b"data: {"):
                (choice,) = msgspec.json.decode(line[6:])["choices"]
                tokens += [ord(text) - 0x4E00 for text in choice["logprobs"]["tokens"]]
            elif line.startswith(b"data: [DONE]"):
                return tokens
            if wanted.leaves is not None and len(tokens) >= wanted.leaves:
                answer.close()
                return tokens
    raise AssertionError("a stream ended without [DONE]")


async def run_load(served: Served, load: list[Wanted]) -> list[list[int]]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        return await asyncio.gather(*(ask(session, served.url, wanted) for wanted in load))


async def figures(served: Served) -> Samples:
    async with aiohttp.ClientSession() as session, session.get(f"{served.url}/metrics") as answer:
        return samples(await answer.read())


def test_every_client_gets_its_tokens_and_nothing_is_left_behind(
    folder: Path, served: Served
) -> None:
    load = make_load()
    asyncio.run(run_load(served, load[:1]))
    asyncio.run(figures(served))
    before = served.open_files()

    outputs = asyncio.run(run_load(served, load))

    with PPInferEngine(folder, dtype="fp32") as engine:
        for wanted, tokens in zip(load, outputs, strict=True):
            (alone,) = engine.generate(wanted.prompt, wanted.params())
            expected = alone.token_ids
            if wanted.leaves is not None:
                expected = expected[: len(tokens)]
            assert tokens == expected
    wait_until(lambda: served.open_files() <= before)
    left = ("requests_running", "requests_waiting", "kv_blocks_used")
    wait_until(lambda: [of(asyncio.run(figures(served)), name) for name in left] == [0, 0, 0])
    found = asyncio.run(figures(served))
    gone = sum(wanted.leaves is not None for wanted in load)
    assert of(found, "requests_finished_total", reason="abort") <= gone
    stayed = CLIENTS - gone + 1
    assert of(found, "requests_finished_total", reason="length") >= stayed
