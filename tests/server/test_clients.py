"""OpenAI's own client works unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from support.fake_async_engine import (
    ANSWER,
    RunningServer,
    running_server,
    small_tokenizer,
    wait_until,
)

from ppinfer.errors import StageError


class Person(pydantic.BaseModel):
    name: str
    age: int


USER: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


class TestSync:
    def test_chat(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="small", messages=USER)
        assert answer.choices[0].message.content == ANSWER
        assert answer.choices[0].finish_reason == "stop"
        assert answer.object == "chat.completion"
        assert answer.usage is not None
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )
        assert answer._request_id

    def test_streamed_chat(self, client: openai.OpenAI) -> None:
        text, usage = "", None
        with client.chat.completions.create(
            model="small", messages=USER, stream=True, stream_options={"include_usage": True}
        ) as stream:
            for chunk in stream:
                usage = chunk.usage or usage
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text == ANSWER
        assert usage is not None
        assert usage.completion_tokens == len(small_tokenizer().encode(ANSWER)) + 1

    def test_helper(self, client: openai.OpenAI) -> None:
        """The client's own accumulation of a stream."""
        with client.chat.completions.stream(model="small", messages=USER, logprobs=True) as stream:
            stream.until_done()
            choice = stream.get_final_completion().choices[0]
        assert choice.message.content == ANSWER
        assert choice.logprobs is not None
        assert choice.logprobs.content

    def test_logprobs(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="small", messages=USER, logprobs=True, top_logprobs=3
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [len(entry.top_logprobs) for entry in logprobs.content] == [3] * len(
            logprobs.content
        )
        assert bytes(logprobs.content[1].bytes or []) == b" quick"

    def test_parsed_answer(self, client: openai.OpenAI, server: RunningServer) -> None:
        server.engine.answer = '{"name": "Ann", "age": 5}'
        answer = client.chat.completions.parse(model="small", messages=USER, response_format=Person)
        assert answer.choices[0].message.parsed == Person(name="Ann", age=5)
        grammar = server.engine.calls[-1].params.grammar
        assert grammar is not None
        assert '"lenient": false' in grammar.text

    def test_parsed_tool_calls(self, client: openai.OpenAI, server: RunningServer) -> None:
        """Whole, and as the client's own helper puts a stream together."""
        arguments = '{"name": "Ann", "age": 5}'
        server.engine.answer = (
            f'<tool_call>\n{{"name": "Person", "arguments": {arguments}}}\n</tool_call>'
        )
        server.engine.info.max_model_len = 2000
        tools = [openai.pydantic_function_tool(Person)]
        answer = client.chat.completions.parse(model="small", messages=USER, tools=tools)
        with client.chat.completions.stream(model="small", messages=USER, tools=tools) as stream:
            names = {event.type for event in stream}
            streamed = stream.get_final_completion()
        assert "tool_calls.function.arguments.done" in names
        for completion in (answer, streamed):
            choice = completion.choices[0]
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            (call,) = choice.message.tool_calls or ()
            assert call.function.arguments == arguments
            assert call.function.parsed_arguments == Person(name="Ann", age=5)
        asked = answer.choices[0].message
        assert asked.tool_calls
        result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "done"}
        history: Any = [*USER, asked, result]
        again = client.chat.completions.create(model="small", messages=history, tools=tools)
        assert again.choices[0].finish_reason == "tool_calls"

    def test_completions(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(
            model="small", prompt=["a", "b"], n=2, logprobs=2, max_tokens=4, echo=False
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.text_offset == [0, 3, 9, 15]
        streamed = client.completions.create(model="small", prompt=[5, 6], stream=True)
        assert ANSWER.startswith("".join(chunk.choices[0].text for chunk in streamed))

    def test_models(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["small"]
        assert client.models.retrieve("small").owned_by == "ppinfer"

    def test_fields_of_this_server(self, client: openai.OpenAI, server: RunningServer) -> None:
        client.chat.completions.create(
            model="small",
            messages=USER,
            extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
        )
        params = server.engine.calls[-1].params
        assert (params.top_k, params.min_p) == (5, 0.1)
        assert (params.repetition_penalty, params.ignore_eos) == (1.1, True)


class TestErrors:
    def test_bad_request(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="small", messages=USER, temperature=-1)
        assert caught.value.param == "temperature"
        assert caught.value.type == "invalid_request_error"
        assert caught.value.request_id

    def test_unknown_model(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-9", messages=USER)
        assert caught.value.code == "model_not_found"

    def test_in_a_stream(self, client: openai.OpenAI, server: RunningServer) -> None:
        server.engine.fail_at = (3, StageError("Stage 0 died.", 0))
        stream = client.chat.completions.create(model="small", messages=USER, stream=True)
        with pytest.raises(openai.APIError, match="engine failed"):
            list(stream)

    def test_key(self) -> None:
        with running_server(api_keys=("right",)) as server:
            for key, right in [("wrong", False), ("right", True)]:
                with openai.OpenAI(base_url=server.url, api_key=key, max_retries=0) as client:
                    if right:
                        assert client.models.list().data
                    else:
                        with pytest.raises(openai.AuthenticationError):
                            client.models.list()


class TestAsync:
    def test_many_streams(self, server: RunningServer) -> None:
        server.engine.pause = 0.002

        async def one(client: openai.AsyncOpenAI) -> str:
            stream = await client.chat.completions.create(model="small", messages=USER, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def run() -> list[str]:
            async with openai.AsyncOpenAI(
                base_url=server.url, api_key="none", max_retries=0, timeout=60
            ) as client:
                return await asyncio.gather(*(one(client) for _ in range(64)))

        assert asyncio.run(run()) == [ANSWER] * 64

    def test_cancelled(self, server: RunningServer) -> None:
        """A stream that is left is aborted, and so is a task that is cancelled."""
        engine = server.engine
        engine.pause, engine.endless, engine.info.max_model_len = 0.01, True, 10**6

        async def run() -> None:
            async with openai.AsyncOpenAI(
                base_url=server.url, api_key="none", max_retries=0, timeout=60
            ) as client:
                async with await client.chat.completions.create(
                    model="small", messages=USER, stream=True
                ) as stream:
                    await anext(aiter(stream))
                task = asyncio.create_task(
                    client.chat.completions.create(model="small", messages=USER)
                )
                await asyncio.to_thread(wait_until, lambda: len(engine.calls) == 2)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(run())
        server.idle()
        assert engine.aborted == 2
