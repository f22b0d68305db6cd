"""The form of an answer and calls of tools: what is asked of the engine, and what is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.fake_async_engine import ANSWER, Answer, RunningServer, small_tokenizer
from support.small_tokenizers import CHATML, train_byte_level
from tokenizers import AddedToken

from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import RequestError
from ppinfer.grammar import Grammar

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Of today", "parameters": CITY},
}
NOW = {"type": "function", "function": {"name": "now"}}
ONE = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln <b>"}}\n</tool_call>'
TWO = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Köln"}'},
}
USER = {"role": "user", "content": "Hi"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}


def schema_format(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY} | more}


def grammar_of(server: RunningServer) -> Grammar | None:
    return server.engine.calls[-1].params.grammar


def chat(server: RunningServer, *messages: Any, **fields: Any) -> Answer:
    return server.request(
        "POST", "/v1/chat/completions", {"messages": list(messages) or [USER]} | fields
    )


def prompt_of(server: RunningServer) -> str:
    assert server.engine.tokenizer is not None
    return server.engine.tokenizer.decode(server.engine.calls[-1].ids, skip_special_tokens=False)


@pytest.fixture(autouse=True)
def with_room(server: RunningServer) -> None:
    server.engine.info.max_model_len = 5000


class TestFormats:
    @pytest.mark.parametrize("path", ["chat", "complete"])
    def test_grammars(self, server: RunningServer, path: str) -> None:
        for wanted, grammar in [
            ({"type": "text"}, None),
            (None, None),
            ({"type": "json_object"}, Grammar.json_object()),
            (schema_format(), Grammar.json_schema(CITY, strict=False)),
            (schema_format(strict=True, description="d"), Grammar.json_schema(CITY)),
        ]:
            assert getattr(server, path)(response_format=wanted).status == 200
            assert grammar_of(server) == grammar

    @pytest.mark.parametrize(
        ("wanted", "param"),
        [
            ("text", ""), ({"type": "xml"}, ".type"), ({}, ".type"),
            ({"type": "text", "x": 1}, ".x"),
            ({"type": "json_schema"}, ".json_schema"),
            ({"type": "json_schema", "json_schema": {"name": "x"}}, ".json_schema.schema"),
            (schema_format(schema=[]), ".json_schema.schema"),
            (schema_format(name="a b"), ".json_schema.name"),
            (schema_format(name="x" * 65), ".json_schema.name"),
            (schema_format(strict="yes"), ".json_schema.strict"),
            (schema_format(schema={"multipleOf": 10**7 + 3}), ".json_schema.schema"),
            (schema_format(schema={"const": "x" * 200_000}), ".json_schema.schema"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("path", ["chat", "complete"])
    def test_refused(self, server: RunningServer, path: str, wanted: Any, param: str) -> None:
        answer = getattr(server, path)(response_format=wanted)
        assert (answer.status, answer.error["param"]) == (400, f"response_format{param}")
        assert not server.engine.calls

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("fields", "param"),
        [({"response_format": schema_format()}, "response_format"), ({"tools": [NOW]}, "tools")],
    )
    def test_what_the_engine_refuses(
        self, server: RunningServer, stream: bool, fields: Any, param: str
    ) -> None:
        server.engine.fail_at = 0, RequestError("The grammar cannot be followed: x.", "grammar")
        answer = server.chat(stream=stream, **fields)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert answer.error["message"] == f"{param} cannot be followed: x."


class TestWhatTheModelIsTold:
    def test_by_a_template_that_knows_no_tools(self, server: RunningServer) -> None:
        chat(server, USER, tools=[WEATHER, NOW])
        before, _, after = prompt_of(server).partition("<tools>\n")
        assert before.startswith("<|im_start|>system\nYou may call functions.")
        listed, _, rest = after.partition("\n</tools>")
        functions = [json.loads(line)["function"] for line in listed.splitlines()]
        assert functions[0] == WEATHER["function"]
        assert functions[1]["name"] == "now"
        assert functions[1]["parameters"]["additionalProperties"] is False
        assert '<tool_call>\n{"name": "…", "arguments": {…}}\n</tool_call>' in rest

    def test_a_system_message_is_kept(self, server: RunningServer) -> None:
        chat(server, {"role": "system", "content": "Be kind."}, USER, tools=[NOW])
        assert prompt_of(server).startswith("<|im_start|>system\nBe kind.\n\nYou may call")
        assert prompt_of(server).count("<|im_start|>system") == 1

    @pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": [NOW], "tool_choice": "none"}])
    def test_of_none(self, server: RunningServer, fields: Any) -> None:
        assert chat(server, USER, **fields).status == 200
        assert prompt_of(server) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert grammar_of(server) is None

    def test_of_the_named_one_alone(self, server: RunningServer) -> None:
        choice = {"type": "function", "function": {"name": "now"}}
        chat(server, USER, tools=[WEATHER, NOW], tool_choice=choice)
        assert "get_weather" not in prompt_of(server)

    def test_earlier_calls(self, server: RunningServer) -> None:
        said = CALLED | {"content": "Let me see."}
        second = CALL | {"id": "call_2"}
        chat(server, USER, said, RESULT, CALLED | {"tool_calls": [CALL, second]}, RESULT)
        call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
        result = "user\n<tool_response>\nrain\n</tool_response>"
        turns = ["user\nHi", f"assistant\nLet me see.\n{call}", result]
        turns += [f"assistant\n{call}\n{call}", result]
        text = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
        assert prompt_of(server) == text + "<|im_start|>assistant\n"

    def test_by_a_template_that_knows_tools(self, server: RunningServer) -> None:
        template = CHATML + (
            "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages if m.tool_calls %}"
            "<tool_call>{{ m.tool_calls[0].function.arguments.city }}{{ m.content }}{% endfor %}"
            "{{ messages[-1].role }}{{ messages[-1].tool_call_id }}{{ messages[-1].name }}"
        )
        server.engine.tokenizer = Tokenizer(train_byte_level(), chat_template=template)
        chat(server, USER, CALLED, RESULT, tools=[WEATHER])
        assert json.dumps([WEATHER]) + "<tool_call>Kölntoolcall_1" in prompt_of(server)
        chat(server, USER, CALLED, RESULT | {"name": "get_weather"})
        assert prompt_of(server).endswith("assistant\n<tool_call>Kölntoolcall_1get_weather")

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([RESULT], "[0].tool_call_id"), ([USER, CALLED, RESULT | {"tool_call_id": "x"}],
                                            "[2].tool_call_id"),
            ([CALLED, {"role": "tool", "content": "x"}], "[1].tool_call_id"),
            ([CALLED, RESULT | {"content": None}], "[1].content"),
            ([USER | {"tool_calls": [CALL]}], "[0].tool_calls"),
            ([USER | {"tool_call_id": "x"}], "[0].tool_call_id"),
            ([CALLED | {"tool_calls": [CALL | {"type": "custom"}]}], "[0].tool_calls[0].type"),
            ([CALLED | {"tool_calls": [{"id": "x", "type": "function"}]}],
             "[0].tool_calls[0].function"),
            (
                [CALLED | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}]}],
                "[0].tool_calls[0].function.arguments",
            ),
            ([{"role": "assistant", "content": None, "tool_calls": []}], "[0].content"),
            ([{"role": "function", "name": "f", "content": "x"}], "[0].role"),
            ([USER | {"function_call": {"name": "f", "arguments": ""}}], "[0].function_call"),
        ],
    )  # fmt: skip
    def test_messages_that_are_refused(
        self, server: RunningServer, messages: Any, param: str
    ) -> None:
        answer = chat(server, *messages)
        assert (answer.status, answer.error["param"]) == (400, f"messages{param}")


class TestGrammars:
    """What they allow is tried out in ``test_tool_grammars``."""

    def test_choices(self, server: RunningServer) -> None:
        found = {}
        named = {"type": "function", "function": {"name": "now"}}
        for choice in (None, "auto", "required", named):
            assert chat(server, tools=[WEATHER, NOW], tool_choice=choice).status == 200
            found[str(choice)] = grammar_of(server)
        assert found["None"] == found["auto"]
        assert len(set(found.values())) == 3
        chat(server, tools=[WEATHER, NOW], parallel_tool_calls=False)
        assert grammar_of(server) not in found.values()
        chat(server, tools=[WEATHER, NOW], response_format=schema_format())
        assert grammar_of(server) not in found.values()

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"tools": {}}, "tools"), ({"tools": [NOW] * 129}, "tools"),
            ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
            ({"tools": [{"type": "retrieval", "function": {"name": "x"}}]}, "tools[0].type"),
            ({"tools": [{"type": "function"}]}, "tools[0].function"),
            ({"tools": [{"type": "function", "function": {"name": "a b"}}]},
             "tools[0].function.name"),
            ({"tools": [NOW, WEATHER, NOW]}, "tools[2].function.name"),
            ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]},
             "tools[0].function.x"),
            ({"tools": [{"type": "function",
                         "function": {"name": "a", "parameters": {"type": "string"}}}]},
             "tools[0].function.parameters"),
            ({"tools": [{"type": "function",
                         "function": {"name": "a", "parameters": {"multipleOf": 10**9 + 7}}}]},
             "tools[0].function.parameters"),
            ({"tool_choice": "required"}, "tool_choice"), ({"tool_choice": "any"}, "tool_choice"),
            ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
            ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "f"}}},
             "tool_choice"),
            ({"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice.function"),
            ({"tools": [NOW], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
            ({"functions": [{"name": "f"}]}, "functions"),
            ({"function_call": {"name": "f"}}, "function_call"),
        ],
    )  # fmt: skip
    def test_refused(self, server: RunningServer, fields: Any, param: str) -> None:
        answer = server.chat(**fields)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert not server.engine.calls


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "content", "names", "reason"),
        [
            (ANSWER, ANSWER, [], "stop"),
            (ONE, None, ["get_weather"], "tool_calls"),
            (f"{ONE}\n{TWO}", None, ["get_weather", "now"], "tool_calls"),
            (f"Wait. <i>\n{TWO}", "Wait. <i>", ["now"], "tool_calls"),
            (f"\n \n{TWO}", None, ["now"], "tool_calls"),
            (" \n", " \n", [], "stop"),
            ("a <tool_call> b <tool_call", "a <tool_call> b <tool_call", [], "stop"),
        ],
    )
    def test_whole_and_streamed(
        self,
        server: RunningServer,
        answer: str,
        content: str | None,
        names: list[str],
        reason: str,
    ) -> None:
        server.engine.answer = answer
        (choice,) = server.chat(tools=[WEATHER, NOW]).json["choices"]
        message = choice["message"]
        calls = message.get("tool_calls", [])
        assert message["content"] == content
        assert [call["function"]["name"] for call in calls] == names
        assert choice["finish_reason"] == reason
        assert len({call["id"] for call in calls}) == len(calls)
        if names and names[0] == "get_weather":
            assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Köln <b>"}
        events = server.chat(tools=[WEATHER, NOW], stream=True).events
        deltas = [event["choices"][0]["delta"] for event in events]
        assert deltas[0] == {"role": "assistant", "content": None}
        text = "".join(delta.get("content") or "" for delta in deltas)
        assert text == (content or "")
        parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
        for index, call in enumerate(calls):
            first, *rest = [part for part in parts if part["index"] == index]
            assert first["id"].startswith("call_")
            assert first["type"] == "function"
            assert first["function"] == {"name": call["function"]["name"], "arguments": ""}
            assert all(set(part) == {"index", "function"} for part in rest)
            arguments = "".join(part["function"]["arguments"] for part in rest)
            assert arguments == call["function"]["arguments"]
            assert len(rest) >= 1
        assert events[-1]["choices"][0]["finish_reason"] == reason

    @pytest.mark.parametrize("stream", [False, True])
    def test_cut_off(self, server: RunningServer, stream: bool) -> None:
        server.engine.answer = ONE
        length = len(small_tokenizer().encode(ONE[: ONE.index("Köln")]))
        for limit, calls in ((2, 0), (length, 1)):
            answer = server.chat(tools=[WEATHER], max_tokens=limit, stream=stream)
            if stream:
                deltas = [event["choices"][0] for event in answer.events]
                assert deltas[-1]["finish_reason"] == "length"
                parts = [p for d in deltas for p in d["delta"].get("tool_calls", [])]
                text = "".join(part["function"]["arguments"] for part in parts)
                assert len({part["index"] for part in parts}) == calls
            else:
                (choice,) = answer.json["choices"]
                assert choice["finish_reason"] == "length"
                found = choice["message"].get("tool_calls", [])
                assert len(found) == calls
                text = "".join(call["function"]["arguments"] for call in found)
            assert text == '{"city": "' * calls

    def test_logprobs_are_of_all_tokens(self, server: RunningServer) -> None:
        server.engine.answer = f"So.\n{ONE}"
        count = len(small_tokenizer().encode(server.engine.answer)) + 1
        (choice,) = server.chat(tools=[WEATHER], logprobs=True).json["choices"]
        assert len(choice["logprobs"]["content"]) == count
        events = server.chat(tools=[WEATHER], logprobs=True, stream=True).events
        found = [event["choices"][0].get("logprobs") for event in events]
        assert sum(len(part["content"]) for part in found if part) == count

    def test_several_answers(self, server: RunningServer) -> None:
        server.engine.answer = TWO
        events = server.chat(tools=[NOW], n=2, stream=True).events
        ids = {
            part["id"]: event["choices"][0]["index"]
            for event in events
            for part in event["choices"][0]["delta"].get("tool_calls", [])
            if "id" in part
        }
        assert sorted(ids.values()) == [0, 1]


def test_a_models_own_token_for_calls(server: RunningServer) -> None:
    """Where the tags are tokens, those are what the model was trained to write."""
    backend = train_byte_level()
    backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
    server.engine.tokenizer = Tokenizer(backend, chat_template=CHATML)
    server.engine.info.vocab_size = server.engine.tokenizer.vocab_size
    token = server.engine.tokenizer.token_id("<tool_call>")
    chat(server, tools=[NOW])
    grammar = grammar_of(server)
    assert grammar is not None
    assert f"<[{token}]>" in grammar.text
    assert '"</tool_call>"' in grammar.text
