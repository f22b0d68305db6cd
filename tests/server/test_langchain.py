"""LangChain's OpenAI package works unchanged."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import openai
import pydantic
import pytest
from support.fake_async_engine import ANSWER, RunningServer, small_tokenizer

if find_spec("langchain_openai") is None:
    pytest.skip("langchain-openai is not installed", allow_module_level=True)

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI


@pytest.fixture
def settings(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The connections are ours: LangChain keeps its own to the end of the process."""
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    server.engine.info.max_model_len = 5000
    with openai.DefaultHttpxClient() as http:
        yield {
            "base_url": server.url, "api_key": "none", "model": "small", "max_retries": 0,
            "http_client": http,
        }  # fmt: skip


def tokens_of_answer() -> int:
    return len(small_tokenizer().encode(ANSWER)) + 1


class TestChat:
    def test_invoke(self, settings: dict[str, Any], server: RunningServer) -> None:
        chat = ChatOpenAI(**settings, temperature=0.5, seed=3, top_p=0.9, stop=["never"])
        answer = chat.invoke([("system", "Be brief."), ("human", "Hi")])
        assert answer.content == ANSWER
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] == tokens_of_answer()
        assert answer.response_metadata["finish_reason"] == "stop"
        params = server.engine.calls[-1].params
        assert (params.temperature, params.seed, params.top_p) == (0.5, 3, 0.9)

    def test_stream(self, settings: dict[str, Any]) -> None:
        chunks = list(ChatOpenAI(**settings, stream_usage=True).stream("Hi"))
        assert "".join(str(chunk.content) for chunk in chunks) == ANSWER
        usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        assert [each["output_tokens"] for each in usage] == [tokens_of_answer()]

    def test_logprobs(self, settings: dict[str, Any]) -> None:
        answer = ChatOpenAI(**settings, logprobs=True, top_logprobs=2).invoke("Hi")
        assert len(answer.response_metadata["logprobs"]["content"]) == tokens_of_answer()

    def test_batch(self, settings: dict[str, Any]) -> None:
        assert [a.content for a in ChatOpenAI(**settings).batch(["a", "b", "c"])] == [ANSWER] * 3

    def test_async(self, settings: dict[str, Any]) -> None:
        async def run() -> list[Any]:
            async with openai.DefaultAsyncHttpxClient() as http:
                chat = ChatOpenAI(**settings, http_async_client=http)

                async def streamed() -> str:
                    return "".join([str(chunk.content) async for chunk in chat.astream("Hi")])

                answer, *rest = await asyncio.gather(chat.ainvoke("Hi"), streamed(), streamed())
                return [answer.content, *rest]

        assert asyncio.run(run()) == [ANSWER] * 3


class City(pydantic.BaseModel):
    """Where it is."""

    city: str


class TestForms:
    def test_tools(self, settings: dict[str, Any], server: RunningServer) -> None:
        server.engine.answer = (
            '<tool_call>\n{"name": "City", "arguments": {"city": "Köln"}}\n</tool_call>'
        )
        chat = ChatOpenAI(**settings).bind_tools([City], tool_choice="any")
        answer = chat.invoke("Hi")
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == ("City", {"city": "Köln"})
        streamed: Any = functools.reduce(operator.add, chat.stream("Hi"))
        assert [(c["name"], c["args"]) for c in streamed.tool_calls] == [("City", call["args"])]
        result = ToolMessage("rain", tool_call_id=call["id"])
        chat.invoke([HumanMessage("Hi"), answer, result])
        last = server.engine.calls[-1]
        assert last.params.grammar is not None
        assert "<tool_response>\nrain" in small_tokenizer().decode(last.ids)

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output(
        self, settings: dict[str, Any], server: RunningServer, method: Any
    ) -> None:
        arguments = '{"city": "Köln"}'
        call = f'<tool_call>\n{{"name": "City", "arguments": {arguments}}}\n</tool_call>'
        server.engine.answer = arguments if method == "json_schema" else call
        chat = ChatOpenAI(**settings).with_structured_output(City, method=method)
        assert chat.invoke("Hi") == City(city="Köln")
        assert server.engine.calls[-1].params.grammar is not None


class TestCompletions:
    def test_invoke_and_batch(self, settings: dict[str, Any]) -> None:
        model = OpenAI(**settings, max_tokens=60)
        assert model.invoke("a") == ANSWER
        result = model.generate(["a", "b"])
        assert [each[0].text for each in result.generations] == [ANSWER] * 2
        assert result.llm_output is not None
        assert result.llm_output["token_usage"]["completion_tokens"] == 2 * tokens_of_answer()

    def test_stream(self, settings: dict[str, Any]) -> None:
        assert "".join(OpenAI(**settings, max_tokens=60).stream("a")) == ANSWER

    def test_async(self, settings: dict[str, Any]) -> None:
        async def run() -> str:
            async with openai.DefaultAsyncHttpxClient() as http:
                return await OpenAI(**settings, http_async_client=http, max_tokens=60).ainvoke("a")

        assert asyncio.run(run()) == ANSWER
