"""Every field of a request has its effect, and every wrong value is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.fake_async_engine import ANSWER, FakeAsyncEngine, RunningServer, small_tokenizer

from ppinfer.sampling import SamplingParams
from ppinfer.server import params as fields

VOCABULARY = small_tokenizer().vocab_size
HAS_BIAS = "logit_bias" in SamplingParams.__struct_fields__
BOTH = pytest.mark.parametrize("path", ["chat", "complete"])


def ask(server: RunningServer, path: str, **given: Any) -> SamplingParams:
    """The parameters that reach the engine."""
    answer = getattr(server, path)(**given)
    assert answer.status == 200, answer.body
    assert isinstance(server.engine, FakeAsyncEngine)
    return server.engine.calls[-1].params


class TestEffects:
    @BOTH
    def test_defaults_are_those_of_openai(self, server: RunningServer, path: str) -> None:
        limit = {"chat": server.engine.info.max_model_len, "complete": 16}[path]
        assert ask(server, path) == SamplingParams(temperature=1.0, max_tokens=limit)

    @BOTH
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("temperature", 0.5), ("temperature", 0), ("temperature", 1e-30), ("top_p", 0.3),
            ("top_k", 7), ("min_p", 0.1), ("presence_penalty", -1.5), ("frequency_penalty", 0.5),
            ("repetition_penalty", 1.2), ("seed", -(2**63)), ("seed", 2**63 - 1),
            ("ignore_eos", True), ("min_tokens", 2), ("max_tokens", 5),
        ],
    )  # fmt: skip
    def test_passed_on(self, server: RunningServer, path: str, name: str, value: Any) -> None:
        assert getattr(ask(server, path, **{name: value}), name) == value

    @BOTH
    def test_null_is_the_default(self, server: RunningServer, path: str) -> None:
        names = (
            "model", "stream", "stream_options", "n", "stop", "seed", "temperature", "top_p",
            "top_k", "logit_bias", "logprobs", "user", "priority", "min_p", "max_tokens",
        )  # fmt: skip
        assert ask(server, path, **dict.fromkeys(names)) == ask(server, path)

    @BOTH
    def test_stops(self, server: RunningServer, path: str) -> None:
        assert ask(server, path, stop="x").stop == ("x",)
        assert ask(server, path, stop=["x", "\n", "\0"]).stop == ("x", "\n", "\0")
        assert ask(server, path, stop=[]).stop == ()
        assert ask(server, path, stop_token_ids=[5, 6]).stop_token_ids == (5, 6)
        choice = getattr(server, path)(stop=" fox").json["choices"][0]
        text = choice["text"] if path == "complete" else choice["message"]["content"]
        assert (text, choice["finish_reason"]) == ("The quick brown", "stop")

    def test_logprobs(self, server: RunningServer) -> None:
        assert ask(server, "complete", logprobs=0).logprobs == 0
        assert ask(server, "complete", logprobs=20).logprobs == 20
        assert ask(server, "chat", logprobs=True).logprobs == 0
        assert ask(server, "chat", logprobs=True, top_logprobs=3).logprobs == 3
        assert ask(server, "chat", logprobs=False).logprobs is None

    def test_two_names_of_one_limit(self, server: RunningServer) -> None:
        assert ask(server, "chat", max_completion_tokens=3).max_tokens == 3
        assert ask(server, "chat", max_completion_tokens=3, max_tokens=3).max_tokens == 3

    @BOTH
    def test_stream_tells_the_engine_that_somebody_reads_along(
        self, server: RunningServer, path: str
    ) -> None:
        ask(server, path)
        ask(server, path, stream=True)
        assert [call.streamed for call in server.engine.calls] == [False, True]

    @BOTH
    def test_priority(self, server: RunningServer, path: str) -> None:
        ask(server, path)
        ask(server, path, priority=-3)
        assert [call.priority for call in server.engine.calls] == [0, -3]

    @BOTH
    def test_n_with_and_without_a_seed(self, server: RunningServer, path: str) -> None:
        answer = getattr(server, path)(n=3, seed=2**63 - 1)
        assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
        seeds = [call.params.seed for call in server.engine.calls]
        assert seeds == [2**63 - 1, -(2**63), -(2**63) + 1]
        server.engine.calls.clear()
        getattr(server, path)(n=2)
        assert [call.params.seed for call in server.engine.calls] == [None, None]

    @BOTH
    def test_logit_bias(self, server: RunningServer, path: str) -> None:
        answer = getattr(server, path)(logit_bias={"5": -100, "6": 1.5})
        if not HAS_BIAS:
            assert (answer.status, answer.error["param"]) == (400, "logit_bias")
        else:
            params = server.engine.calls[-1].params
            assert dict(params.logit_bias) == {5: -100.0, 6: 1.5}
        assert getattr(server, path)(logit_bias={}).status == 200

    def test_what_is_for_others_changes_nothing(self, server: RunningServer) -> None:
        plain = ask(server, "chat")
        neutral = {
            "user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
            "safety_identifier": "x", "prompt_cache_key": "y", "parallel_tool_calls": True,
            "response_format": {"type": "text"}, "tools": [], "tool_choice": "none",
            "modalities": ["text"], "functions": [], "function_call": "auto", "audio": None,
        }  # fmt: skip
        assert ask(server, "chat", **neutral) == plain
        assert ask(server, "complete", best_of=1, suffix="") == ask(server, "complete")

    def test_model(self, server: RunningServer) -> None:
        assert server.chat(model="small").json["model"] == "small"
        answer = server.chat(model="/etc/passwd")
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert answer.error["param"] == "model"
        assert b"passwd" not in answer.body


WRONG: list[tuple[str, Any]] = [
    ("temperature", "hot"), ("temperature", True), ("temperature", -0.1), ("temperature", []),
    ("top_p", 0), ("top_p", 2), ("top_p", -1), ("top_k", -5), ("top_k", 1.5), ("min_p", 1.1),
    ("min_p", -0.1), ("presence_penalty", 2.1), ("frequency_penalty", -2.1),
    ("repetition_penalty", 0), ("repetition_penalty", -1), ("seed", 2**63), ("seed", -(2**63) - 1),
    ("seed", 1.5), ("seed", "1"), ("n", 0), ("n", -1), ("n", 10**9), ("n", True), ("n", 1.0),
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**63), ("max_tokens", True),
    ("min_tokens", -1), ("min_tokens", 10**6), ("stop", ""), ("stop", [""]),
    ("stop", ["x"] * 10_000),
    ("stop", "x" * 10**6), ("stop", 5), ("stop_token_ids", [-1]), ("stop_token_ids", [10**6]),
    ("stop_token_ids", [5] * 1000), ("ignore_eos", 1), ("ignore_eos", "yes"), ("stream", "yes"),
    ("logit_bias", {"x": 1}), ("logit_bias", {"5": "x"}), ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1000000": 1}), ("logit_bias", {"5": 101}), ("logit_bias", []),
    ("logit_bias", {str(i): 1 for i in range(100_000)}), ("priority", "high"),
    ("priority", 2**40), ("user", 5), ("service_tier", "flex"), ("stream_options", {}),
    ("stream_options", {"include_usage": True}), ("best_or", 1), ("guided_json", {}),
    ("chat_template", "{{ x }}"), ("temprature", 1), ("metadata", {"a": 1}),
]  # fmt: skip


class TestRefusals:
    @BOTH
    @pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:30])
    def test_named(self, server: RunningServer, path: str, name: str, value: Any) -> None:
        answer = getattr(server, path)(**{name: value})
        assert answer.status == 400, answer.body
        assert answer.error["param"] == name
        assert answer.error["type"] == "invalid_request_error"
        assert len(answer.error["message"]) < 300
        assert answer.error["message"][-1] == "."
        assert not server.engine.calls

    @BOTH
    @pytest.mark.parametrize(
        "value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 10_000]
    )
    @pytest.mark.parametrize("name", ["temperature", "top_p", "presence_penalty", "seed"])
    def test_numbers_that_are_none(
        self, server: RunningServer, path: str, name: str, value: str
    ) -> None:
        body = f'{{"messages": [{{"role": "user", "content": "x"}}], "{name}": {value}}}'
        where = "/v1/chat/completions"
        if path == "complete":
            body, where = f'{{"prompt": "x", "{name}" : {value}, "n": 1}}', "/v1/completions"
        answer = server.request("POST", where, body.encode())
        assert (answer.status, answer.error["param"]) == (400, name)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("response_format", {"type": "json_object"}), ("tools", [{"type": "function"}]),
            ("response_format", "text"), ("tool_choice", "required"), ("functions", [{}]),
            ("function_call", {"name": "f"}), ("audio", {"voice": "x"}), ("modalities", ["audio"]),
            ("prediction", {}), ("reasoning_effort", "low"), ("verbosity", "low"),
            ("web_search_options", {}), ("logprobs", 3), ("logprobs", "yes"), ("top_logprobs", 2),
            ("max_completion_tokens", 0), ("max_completion_tokens", -1), ("prompt", "x"),
        ],
    )  # fmt: skip
    def test_of_chats(self, server: RunningServer, name: str, value: Any) -> None:
        answer = server.chat(**{name: value})
        assert (answer.status, answer.error["param"]) == (400, name)
        assert name in answer.error["message"]

    @pytest.mark.parametrize("value", [-1, 21, 10**30])
    def test_logprobs_over_the_cap(self, server: RunningServer, value: int) -> None:
        answer = server.chat(logprobs=True, top_logprobs=value)
        assert answer.error["param"] == "top_logprobs"
        assert answer.error["message"].startswith("top_logprobs must")
        assert server.complete(logprobs=value).error["param"] == "logprobs"

    @pytest.mark.parametrize(
        ("name", "value"), [("suffix", "x"), ("best_of", 2), ("logprobs", True), ("messages", [])]
    )
    def test_of_completions(self, server: RunningServer, name: str, value: Any) -> None:
        answer = server.complete(**{name: value})
        assert (answer.status, answer.error["param"]) == (400, name)

    def test_limits_that_differ(self, server: RunningServer) -> None:
        answer = server.chat(max_tokens=3, max_completion_tokens=4)
        assert (answer.status, answer.error["param"]) == (400, "max_tokens")

    def test_stream_options(self, server: RunningServer) -> None:
        for options, param in [
            ({"include_usage": 1}, "stream_options.include_usage"),
            ({"include_obfuscation": True}, "stream_options.include_obfuscation"),
            ({"continuous": True}, "stream_options.continuous"),
        ]:
            answer = server.chat(stream=True, stream_options=options)
            assert (answer.status, answer.error["param"]) == (400, param)

    def test_values_are_not_repeated(self, server: RunningServer) -> None:
        for given in ({"user": ["secret"]}, {"stop": ["secret", 1]}, {"secret" * 50: 1}):
            assert len(server.chat(**given).error["message"]) < 300
        assert b"secret" not in server.chat(temperature="secret").body


USER = {"role": "user", "content": "Hi"}


class TestMessages:
    def prompt(self, server: RunningServer, *messages: Any) -> str:
        answer = server.request("POST", "/v1/chat/completions", {"messages": list(messages)})
        assert answer.status == 200, answer.body
        return small_tokenizer().decode(server.engine.calls[-1].ids, skip_special_tokens=False)

    def test_template(self, server: RunningServer) -> None:
        system = {"role": "developer", "content": "Be"}
        answer = {"role": "assistant", "content": "Yo", "refusal": None, "tool_calls": None}
        text = self.prompt(server, system, USER, answer, USER)
        turns = [("system", "Be"), ("user", "Hi"), ("assistant", "Yo"), ("user", "Hi")]
        assert text == "".join(
            f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns
        ) + ("<|im_start|>assistant\n")

    def test_parts(self, server: RunningServer) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        assert "user\none\ntwo<|im_end|>" in self.prompt(server, {"role": "user", "content": parts})

    @pytest.mark.parametrize("text", ["\0", "a\0b", "\ufffe", "🙂" * 3, " "])
    def test_odd_text_round_trips(self, server: RunningServer, text: str) -> None:
        assert f"user\n{text}<" in self.prompt(server, {"role": "user", "content": text})

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([], "messages"), ("hi", "messages"), (None, "messages"), ({}, "messages"),
            (["hi"], "messages[0]"), ([USER, None], "messages[1]"),
            ([{"content": "x"}], "messages[0].role"), ([{"role": "user"}], "messages[0].content"),
            ([{"role": "user", "content": None}], "messages[0].content"),
            ([{"role": "user", "content": []}], "messages[0].content"),
            ([{"role": "user", "content": 5}], "messages[0].content"),
            ([{"role": "wizard", "content": "x"}], "messages[0].role"),
            ([{"role": "tool", "content": "x"}], "messages[0].role"),
            ([{"role": 5, "content": "x"}], "messages[0].role"),
            ([{**USER, "name": "Al"}], "messages[0].name"),
            ([USER, {**USER, "foo": 1}], "messages[1].foo"),
            ([{**USER, "tool_calls": [{"id": 1}]}], "messages[0].tool_calls"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                "messages[0].content[0].type",
            ),
            (
                [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
                "messages[0].content[0].type",
            ),
            ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
            ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        ],
    )  # fmt: skip
    def test_refused(self, server: RunningServer, messages: Any, param: str) -> None:
        answer = server.request("POST", "/v1/chat/completions", {"messages": messages})
        assert (answer.status, answer.error["param"]) == (400, param)

    def test_past_the_context(self, server: RunningServer) -> None:
        for answer in (server.chat("x " * 500), server.complete("x " * 500)):
            assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
            assert "context holds 100" in answer.error["message"]
        assert server.complete([5] * 100).error["code"] == "context_length_exceeded"
        assert server.complete([5] * 99).status == 200
        server.idle()
        assert len(server.engine.calls) == 1


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "ids"),
        [
            ("Hi", [["Hi"]]), (["Hi", "you"], [["Hi"], ["you"]]), ([5, 6], [[5, 6]]),
            ([[5, 6], [7]], [[5, 6], [7]]), (["Hi"], [["Hi"]]), ("\0", [["\0"]]),
        ],
    )  # fmt: skip
    def test_kinds(self, server: RunningServer, prompt: Any, ids: list[list[Any]]) -> None:
        answer = server.complete(prompt)
        expected = [
            small_tokenizer().encode(item[0]) if isinstance(item[0], str) else item for item in ids
        ]
        assert [call.ids for call in server.engine.calls] == expected
        assert [choice["index"] for choice in answer.json["choices"]] == list(range(len(ids)))
        assert answer.json["usage"]["prompt_tokens"] == sum(map(len, expected))

    @pytest.mark.parametrize(
        "prompt",
        [
            "", [], [""], ["a", ""], [[]], [[5], []], [5, "a"], [[5], 6], [-1], [10**6], [2**70],
            [[5], [-1]], {"a": 1}, 5, [1.5], [True], [[[5]]], [None], None, [[True]],
        ],
    )  # fmt: skip
    def test_refused(self, server: RunningServer, prompt: Any) -> None:
        answer = server.complete(prompt)
        assert answer.status == 400
        assert answer.error["param"].split("[")[0] == "prompt"
        assert not server.engine.calls

    def test_echo(self, server: RunningServer) -> None:
        ids = small_tokenizer().encode("Hi you")
        for prompt in ("Hi you", ids):
            choice = server.complete(prompt, echo=True, max_tokens=100).json["choices"][0]
            assert choice["text"] == "Hi you" + ANSWER
            events = server.complete(prompt, echo=True, stream=True, max_tokens=100).events
            assert "".join(event["choices"][0]["text"] for event in events) == "Hi you" + ANSWER

    def test_echo_alone(self, server: RunningServer) -> None:
        answer = server.complete(["Hi", "you"], echo=True, max_tokens=0, n=2)
        assert [choice["text"] for choice in answer.json["choices"]] == ["Hi", "Hi", "you", "you"]
        assert answer.json["usage"]["completion_tokens"] == 0
        events = server.complete("Hi", echo=True, max_tokens=0, stream=True).events
        assert [event["choices"][0]["text"] for event in events] == ["Hi"]
        assert not server.engine.calls

    def test_echo_with_logprobs_is_to_come(self, server: RunningServer) -> None:
        answer = server.complete(echo=True, logprobs=1)
        assert (answer.status, answer.error["param"]) == (400, "logprobs")
        assert "echo" in answer.error["message"]


def test_seed_of_choice() -> None:
    assert [fields.seed_of_choice(7, i) for i in range(3)] == [7, 8, 9]
    assert fields.seed_of_choice(-5, 0) == -5


def test_json_is_compared_without_blanks(server: RunningServer) -> None:
    body = {"messages": [USER], "response_format": {"type": "text"}}
    spaced = json.dumps(body, indent=4).encode()
    assert server.request("POST", "/v1/chat/completions", spaced).status == 200
