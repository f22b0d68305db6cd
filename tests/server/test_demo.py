"""``ppinfer serve demo`` end to end: real stages, OpenAI's client, an end that leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
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
         "--dtype", "fp32", "--kv-cache-memory", "200MB", "--shutdown-timeout", "120"],
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
        env=os.environ | offline, capture_output=True, text=True, timeout=240, check=False,
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


class Ticket(pydantic.BaseModel):
    title: str = pydantic.Field(max_length=20)
    priority: int = pydantic.Field(ge=1, le=5)
    kind: Literal["bug", "wish"]


ASK: Any = [{"role": "user", "content": "The page is blank on my phone. File a ticket."}]
TOOLS: Any = [openai.pydantic_function_tool(Ticket, name="file_ticket")]
LIST = {
    "$defs": {"list": {"anyOf": [{"type": "null"}, {
        "type": "object", "properties": {"next": {"$ref": "#/$defs/list"}},
        "required": ["next"], "additionalProperties": False,
    }]}},
    "type": "object", "properties": {"next": {"$ref": "#/$defs/list"}}, "required": ["next"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as made:
        yield made


def json_schema(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


class TestGuided:
    def ask(self, client: openai.OpenAI, **fields: Any) -> Any:
        """The one choice of a greedy answer."""
        given = {"model": "demo", "messages": ASK, "temperature": 0, "max_tokens": 80} | fields
        return client.chat.completions.create(**given).choices[0]

    def test_formats(self, client: openai.OpenAI) -> None:
        ask = "Write your name and age as a JSON object with two keys."
        messages = [{"role": "user", "content": ask}]
        choice = self.ask(client, messages=messages, response_format={"type": "json_object"})
        assert choice.finish_reason == "stop"
        assert isinstance(json.loads(choice.message.content), dict)
        choice = self.ask(client, response_format=json_schema(LIST), max_tokens=9)
        assert choice.finish_reason == "length"
        assert re.match('({"next": ?)+', choice.message.content)
        answer = client.chat.completions.parse(
            model="demo",
            messages=ASK,
            response_format=Ticket,
            temperature=1,
            seed=1,
            n=2,
            max_tokens=80,
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            assert isinstance(choice.message.parsed, Ticket)
        completion = client.completions.create(
            model="demo", prompt="One digit:",
            extra_body={"response_format": json_schema({"type": "integer", "enum": [4, 7]})},
        )  # fmt: skip
        assert completion.choices[0].text in ("4", "7")

    @pytest.mark.parametrize("pattern", ["^x{1000000}$", "^(x{1000}){1000}$"])
    def test_an_explosion_is_bounded(self, client: openai.OpenAI, pattern: str) -> None:
        start = time.monotonic()
        with pytest.raises(openai.BadRequestError) as caught:
            schema = json_schema({"type": "string", "pattern": pattern})
            self.ask(client, response_format=schema)
        assert caught.value.param == "response_format"
        with pytest.raises(openai.BadRequestError) as caught:
            endless = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}
            self.ask(client, response_format=json_schema(endless | {"required": ["a"]}))
        assert caught.value.param == "response_format"
        assert self.ask(client, max_tokens=1).finish_reason == "length"
        assert time.monotonic() - start < 60

    def test_a_call_that_must_be_made(self, client: openai.OpenAI) -> None:
        """Whole and streamed, and then its result."""
        named = {"type": "function", "function": {"name": "file_ticket"}}
        made = self.ask(client, tools=TOOLS, tool_choice=named)
        assert made.finish_reason == "tool_calls"
        assert made.message.content is None
        (call,) = made.message.tool_calls
        assert call.function.name == "file_ticket"
        Ticket.model_validate_json(call.function.arguments)
        with client.chat.completions.stream(
            model="demo", messages=ASK, temperature=0, tools=TOOLS, tool_choice="required",
            parallel_tool_calls=False, max_tokens=80,
        ) as stream:  # fmt: skip
            streamed = stream.get_final_completion().choices[0]
        assert streamed.finish_reason == "tool_calls"
        (again,) = streamed.message.tool_calls or ()
        assert again.function.arguments == call.function.arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": "Ticket 5 was filed."}
        after_it = [*ASK, made.message, result]
        after = self.ask(client, messages=after_it, tools=TOOLS, max_tokens=4)
        assert after.finish_reason in ("length", "stop", "tool_calls")

    def test_a_call_that_may_be_made(self, client: openai.OpenAI) -> None:
        """The model calls after examples of calls, and else it answers in text."""
        messages: list[Any] = []
        for title in ("Blank page", "Dark mode"):
            arguments = json.dumps({"title": title, "priority": 2, "kind": "bug"})
            call = {"name": "file_ticket", "arguments": arguments}
            made = {"id": title, "type": "function", "function": call}
            messages.append({"role": "user", "content": f"File a ticket: {title}"})
            messages.append({"role": "assistant", "content": None, "tool_calls": [made]})
        messages.append({"role": "user", "content": "File a ticket: Slow search"})
        choice = self.ask(client, messages=messages, tools=TOOLS, tool_choice="auto")
        assert choice.finish_reason == "tool_calls"
        Ticket.model_validate_json(choice.message.tool_calls[0].function.arguments)
        choice = self.ask(client, tools=TOOLS, max_tokens=5, seed=1)
        assert choice.message.content
        assert not choice.message.tool_calls


def test_a_disconnect_makes_room_and_the_end_leaves_nothing(served: Served) -> None:
    with openai.OpenAI(base_url=served.url, api_key="none") as client:
        stream = client.completions.create(
            model="demo", prompt="On and on", max_tokens=4000, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(iter(stream))
        stream.close()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(40) == 0  # far less than 4,000 tokens take
    served.marked.assert_all_gone()
