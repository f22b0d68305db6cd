"""An older major of OpenAI's client, in a process of its own: ``older_openai.py URL KIND``.

``KIND`` is ``texts`` or ``calls``. Prints one JSON object of what it found. The folder of that
client comes first on ``PYTHONPATH``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai

USER: Any = [{"role": "user", "content": "Hi"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


def texts(client: openai.OpenAI) -> dict[str, Any]:
    found: dict[str, Any] = {"models": [model.id for model in client.models.list()]}
    answer = client.chat.completions.create(
        model="small",
        messages=USER,
        logprobs=True,
        top_logprobs=2,
        seed=3,
        max_completion_tokens=60,
    )
    (choice,) = answer.choices
    found["chat"] = choice.message.content, choice.finish_reason
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert answer.usage is not None
    found["usage"] = answer.usage.completion_tokens
    found["top"] = [len(entry.top_logprobs) for entry in choice.logprobs.content]
    parts, usage = [], None
    for chunk in client.chat.completions.create(
        model="small", messages=USER, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        parts += [choice.delta.content or "" for choice in chunk.choices]
    assert usage is not None
    found["streamed chat"] = "".join(parts), usage.completion_tokens
    with client.chat.completions.stream(model="small", messages=USER) as stream:
        stream.until_done()
        found["helper"] = stream.get_final_completion().choices[0].message.content
    plain = client.completions.create(model="small", prompt=["a", "b"], logprobs=1, max_tokens=4)
    assert plain.choices[0].logprobs is not None
    found["completions"] = [choice.text for choice in plain.choices]
    found["offsets"] = plain.choices[0].logprobs.text_offset
    streamed = client.completions.create(model="small", prompt=[5, 6], stream=True, max_tokens=4)
    found["streamed completion"] = "".join(chunk.choices[0].text for chunk in streamed)
    try:
        client.chat.completions.create(model="small", messages=USER, temperature=-1)
    except openai.BadRequestError as error:
        found["error"] = error.param, error.type
    return found


async def texts_at_once(client: openai.AsyncOpenAI) -> dict[str, Any]:
    async def one() -> str:
        stream = await client.chat.completions.create(model="small", messages=USER, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    answer = await client.chat.completions.create(model="small", messages=USER)
    return {
        "async": answer.choices[0].message.content,
        "at once": await asyncio.gather(*(one() for _ in range(8))),
    }


def calls(client: openai.OpenAI) -> dict[str, Any]:
    """Tools and schemas; the scripted answers are the caller's."""
    found: dict[str, Any] = {}
    answer = client.chat.completions.create(
        model="small", messages=USER, tools=[WEATHER], tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    found["call"] = call.function.name, json.loads(call.function.arguments)
    found["reason"] = answer.choices[0].finish_reason
    name, arguments = "", ""
    for chunk in client.chat.completions.create(
        model="small", messages=USER, tools=[WEATHER], stream=True
    ):
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.function is not None
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    found["streamed call"] = name, json.loads(arguments)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    said: Any = answer.choices[0].message.model_dump(exclude_none=True)
    client.chat.completions.create(model="small", messages=[*USER, said, result], tools=[WEATHER])
    return found


def schemas(client: openai.OpenAI) -> dict[str, Any]:
    from pydantic import BaseModel

    class City(BaseModel):
        city: str

    parsed = client.chat.completions.parse(model="small", messages=USER, response_format=City)
    answer = client.chat.completions.create(
        model="small",
        messages=USER,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": CITY, "strict": True},
        },
    )
    assert parsed.choices[0].message.parsed is not None
    return {
        "parsed": parsed.choices[0].message.parsed.city,
        "schema": json.loads(answer.choices[0].message.content or ""),
    }


def main() -> None:
    url, kind = sys.argv[1:]
    settings: Any = {"base_url": url, "api_key": "none", "max_retries": 0, "timeout": 20}
    found: dict[str, Any] = {"version": openai.__version__}

    async def run() -> dict[str, Any]:
        async with openai.AsyncOpenAI(**settings) as client:
            return await texts_at_once(client)

    with openai.OpenAI(**settings) as client:
        found |= {"texts": texts, "calls": calls, "schemas": schemas}[kind](client)
    if kind == "texts":
        found |= asyncio.run(run())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
