"""What serving costs and how it feels, measured over HTTP against a server of its own.

    python benchmark/serving.py [--dtype bf16] [--repeats 3] > docs/results/serving.md

- what server and driver take of the cores while 32 answers are streamed;
- a backlog of requests over HTTP against the same requests given to the engine at once;
- a long prompt that arrives among 16 streams;
- the time to the first token behind a shared prefix.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import aiohttp

from ppinfer import PPInferEngine, SamplingParams
from ppinfer.bench.conditions import conditions, in_words
from ppinfer.percentile import percentile

TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """``ppinfer serve demo`` on a free port."""

    def __init__(self, dtype: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ppinfer.cli", "serve", "demo", "--pp-size", "2",
             "--dtype", dtype, "--port", str(port), "--micro-batch-size", "32"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait()

    def cpu_seconds(self) -> tuple[float, float]:
        """Of the server's own process, and of the driver's, which is its only child."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return _cpu(pid), sum(_cpu(int(child)) for child in children)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Client:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session

    async def ready(self) -> None:
        for _ in range(600):
            try:
                async with self._session.get(f"{self._url}/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        raise SystemExit("The server did not come up.")

    async def stream(self, prompt: list[int], new: int) -> list[float]:
        """When each chunk came, from the sending of the request on, in seconds."""
        body = {
            "prompt": prompt, "max_tokens": new, "stream": True, "ignore_eos": True,
            "temperature": 0,
        }  # fmt: skip
        started, times = time.perf_counter(), []
        async with self._session.post(f"{self._url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter() - started)
        return times

    async def plan_waits(self) -> dict[str, float]:
        """Seconds that each stage has waited for a plan so far."""
        async with self._session.get(f"{self._url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        waits = [line for line in lines if line.startswith("ppinfer_stage_bubble_seconds_total{")]
        return {
            line.partition("stage=")[2][1:2]: float(line.rpartition(" ")[2])
            for line in waits
            if 'cause="plan"' in line
        }

    async def whole(self, prompt: list[int], new: int) -> int:
        body = {"prompt": prompt, "max_tokens": new, "ignore_eos": True, "temperature": 0}
        async with self._session.post(f"{self._url}/v1/completions", json=body) as answer:
            return int((await answer.json())["usage"]["completion_tokens"])


class Prompts:
    """Random token ids, never the same twice."""

    def __init__(self) -> None:
        self._random = random.Random(1)

    def ids(self, count: int) -> list[int]:
        return [self._random.randrange(1000, 40000) for _ in range(count)]

    def mix(self, count: int) -> list[tuple[list[int], int]]:
        """Prompts of 16 to 700 tokens with 8 to 128 new ones."""
        return [
            (self.ids(self._random.randint(16, 700)), self._random.randint(8, 128))
            for _ in range(count)
        ]


def _gaps(streams: Iterable[list[float]]) -> list[float]:
    return [b - a for times in streams for a, b in itertools.pairwise(times)]


async def streaming_cost(client: Client, server: Server, prompts: Prompts) -> str:
    before, own, started = server.cpu_seconds(), time.process_time(), time.perf_counter()
    await asyncio.gather(*(client.stream(prompts.ids(64), 200) for _ in range(32)))
    wall, own = time.perf_counter() - started, time.process_time() - own
    http, driver = (b - a for a, b in zip(before, server.cpu_seconds(), strict=True))
    cores = os.cpu_count() or 1
    share = (http + driver) / (wall * cores)
    return (
        f"| {32 * 200 / wall:.0f} | {http / wall / cores:.1%} | {driver / wall / cores:.1%} | "
        f"**{share:.1%}** | {own / wall / cores:.1%} |"
    )


async def backlog(client: Client, engine: PPInferEngine, prompts: Prompts, stream: bool) -> str:
    """96 requests that are all there at once, over HTTP and in the engine itself."""
    requests = prompts.mix(96)
    new = sum(count for _, count in requests)
    before = await client.plan_waits()
    started, own = time.perf_counter(), time.process_time()
    ask = client.stream if stream else client.whole
    await asyncio.gather(*(ask(ids, count) for ids, count in requests))
    own = time.process_time() - own
    online = time.perf_counter() - started
    after = await client.plan_waits()
    waited = max(after[stage] - before[stage] for stage in before) / online
    set_aside = online - own / (os.cpu_count() or 1)
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for _, count in requests]
    started = time.perf_counter()
    await asyncio.to_thread(engine.generate, [ids for ids, _ in requests], params)
    offline = time.perf_counter() - started
    return (
        f"| {'streamed' if stream else 'whole'} | {new / offline:.0f} | {new / online:.0f} | "
        f"{new / set_aside:.0f} | **{offline / set_aside:.2f}** | {waited:.1%} |"
    )


async def long_prompt(client: Client, prompts: Prompts, length: int) -> str:
    async def streams() -> list[list[float]]:
        return list(await asyncio.gather(*(client.stream(prompts.ids(64), 160) for _ in range(16))))

    usual = _gaps(times[8:] for times in await streams())  # once all of them decode
    started = time.perf_counter()
    running = asyncio.create_task(streams())
    await asyncio.sleep(1.5)
    begin = time.perf_counter() - started
    first = (await client.stream(prompts.ids(length), 1))[0]
    during = [
        b - a
        for times in await running
        for a, b in itertools.pairwise(times)
        if begin <= b <= begin + first
    ]
    p50, p99 = percentile(usual, 0.5), percentile(usual, 0.99)
    beside50, beside99 = percentile(during, 0.5), percentile(during, 0.99)
    return (
        f"| {p50 * 1e3:.1f} | {p99 * 1e3:.1f} | {beside50 * 1e3:.1f} | {beside99 * 1e3:.1f} | "
        f"**{beside99 / p99:.2f}** | {first:.2f} |"
    )


async def shared_prefix(client: Client, prompts: Prompts) -> str:
    prefix = prompts.ids(512)
    first = (await client.stream(prefix + prompts.ids(8), 1))[0]
    later = [(await client.stream(prefix + prompts.ids(8), 1))[0] for _ in range(5)]
    return f"| {first * 1e3:.0f} | {median(later) * 1e3:.1f} | **{first / median(later):.1f}** |"


async def measure(dtype: str, repeats: int) -> None:
    prompts = Prompts()
    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    print("# Serving\n\n" + in_words(conditions()) + "\n")
    print(f"The demo model in {dtype}, two stages, `python benchmark/serving.py`.\n")
    with Server(dtype) as server:
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            client = Client(server.url, session)
            await client.ready()
            await asyncio.gather(*(client.stream(prompts.ids(100), 20) for _ in range(32)))
            print("## 32 answers streamed at once: parts of all cores\n")
            print(
                "| tokens/s | server | driver | both | clients |\n| --: | --: | --: | --: | --: |"
            )
            for _ in range(repeats):
                print(await streaming_cost(client, server, prompts), flush=True)
            print("\n## A prompt of 4,000 tokens among 16 streams: ms between tokens\n")
            print("| usual p50 | p99 | beside it p50 | p99 | p99 ratio | its first token s |")
            print("| --: | --: | --: | --: | --: | --: |")
            for _ in range(repeats):
                print(await long_prompt(client, prompts, 4000), flush=True)
            print("\n## A shared prefix of 512 tokens: ms to the first token\n")
            print("| first request | later ones | ratio |\n| --: | --: | --: |")
            for _ in range(repeats):
                print(await shared_prefix(client, prompts), flush=True)
            settings = {"pp_size": 2, "dtype": dtype, "micro_batch_size": 32}
            engine = await asyncio.to_thread(PPInferEngine, "demo", **settings)
            with engine:
                print("\n## A backlog of 96 requests (16-700 tokens, 8-128 new): tokens/s\n")
                print(
                    "| answers | engine alone | over HTTP | clients' time set aside | ratio | "
                    "a stage waits for a plan |"
                )
                print("| --- | --: | --: | --: | --: | --: |")
                for index in range(2 * repeats):
                    print(await backlog(client, engine, prompts, index % 2 == 1), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.dtype, arguments.repeats))


if __name__ == "__main__":
    main()
