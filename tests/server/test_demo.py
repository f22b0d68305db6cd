"""``ppinfer serve demo`` end to end: real stages, OpenAI's client, an end that leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import openai
import pytest
from support import choices, run_lm_eval
from support.processes import Marked
from support.reference import demo_tokenizer, stored_likelihoods

from ppinfer import PPInferEngine, SamplingParams

pytestmark = pytest.mark.slow
PROMPTS = ["The capital of France is", "Once upon a time, in a", "2, 4, 6, 8,", "Water boils at"]
TOKENS = 12
TASK = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/questions.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@dataclass
class Served:
    url: str
    process: subprocess.Popen[str]
    marked: Marked


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    marked = Marked.new()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppinfer.cli", "serve", "demo", "-pp", "2", "--port", "0",
         "--dtype", "fp32", "--kv-cache-memory", "200MB"],
        stderr=subprocess.PIPE, text=True, env=marked.environment,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            if " at http://" in line:
                url = line.rpartition(" at ")[2].strip()
                break
        assert url
        yield Served(url, process, marked)
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.fixture(scope="module")
def expected() -> list[str]:
    with PPInferEngine("demo", pp_size=1, dtype="fp32") as engine:
        outputs = engine.generate(PROMPTS, SamplingParams(max_tokens=TOKENS, ignore_eos=True))
        return [output.text for output in outputs]


def test_every_stream_is_what_the_engine_says(served: Served, expected: list[str]) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none") as client:

            async def one(prompt: str) -> str:
                stream = await client.completions.create(
                    model="demo", prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True,
                    extra_body={"ignore_eos": True},
                )  # fmt: skip
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(one, PROMPTS))

    assert asyncio.run(run()) == expected


def test_chat_with_seeds_and_bias(served: Served) -> None:
    with openai.OpenAI(base_url=served.url, api_key="none") as client:
        messages = [{"role": "user", "content": "Name a colour."}]

        def ask(**settings: object) -> list[str | None]:
            answer = client.chat.completions.create(
                model="demo",
                messages=messages,
                max_tokens=8,
                **settings,  # type: ignore[call-overload]
            )
            return [choice.message.content for choice in answer.choices]

        assert ask(seed=3, n=2) == ask(seed=3, n=2)
        assert len(set(ask(seed=4, n=3, temperature=1.9))) > 1
        (plain,) = ask(temperature=0)
        first = client.completions.create(model="demo", prompt="a", max_tokens=1, logprobs=1)
        assert first.choices[0].logprobs is not None
        (biased,) = ask(temperature=0, logit_bias={"28": 100})
        assert biased != plain


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_finds_what_transformers_does(served: Served, tmp_path: Path) -> None:
    """Unchanged and without a network, with token ids in batches and with text."""
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, choices.QUESTIONS)))
    (tmp_path / "choices.yaml").write_text(TASK.format(folder=tmp_path))
    (tmp_path / "tokenizer").mkdir()
    demo_tokenizer().backend.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}'
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, run_lm_eval.__file__, served.url, str(tmp_path)],
        env=os.environ | offline, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = stored_likelihoods()
    assert {likelihood.is_greedy for likelihood in expected} == {True, False}
    for line in done.stdout.splitlines():
        answers = [answer for question in json.loads(line) for answer in question]
        assert [logprob for logprob, _ in answers] == pytest.approx(
            [likelihood.logprob for likelihood in expected], abs=1e-4
        )
        assert [greedy for _, greedy in answers] == [each.is_greedy for each in expected]
    assert done.stdout.count("\n") == 2


def test_a_disconnect_makes_room_and_the_end_leaves_nothing(served: Served) -> None:
    with openai.OpenAI(base_url=served.url, api_key="none") as client:
        stream = client.completions.create(
            model="demo", prompt="On and on", max_tokens=4000, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(iter(stream))
        stream.close()
    started = time.monotonic()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0
    assert time.monotonic() - started < 15  # far less than 4,000 tokens take
    served.marked.assert_all_gone()
