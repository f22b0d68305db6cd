"""Chat templates render as in transformers, and a bad one or bad messages fail with a sentence."""

from __future__ import annotations

import time
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_tokenizers import CHATML, train_byte_level

from ppinfer.engine import chat
from ppinfer.engine.chat import ChatTemplate, check_messages
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import RequestError

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
USER = [{"role": "user", "content": "Hi  there"}]
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " What's 2 < 3 & 'so'? "},
    {"role": "assistant", "content": "Yes.\n"},
    {"role": "user", "content": "日本語 🙂 {{ not a template }}"},
]

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set system_message = '<<SYS>>\n' + messages[0]['content'] | trim + '\n<</SYS>>\n\n' %}
    {% set messages = messages[1:] %}
{% else %}
    {% set system_message = '' %}
{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 %}
        {% set content = system_message + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + content | trim + ' ' + eos_token }}
    {% endif %}
{% endfor %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if strftime_now is defined %}{%- set year = strftime_now("%Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system\\n\\nKnowledge: December 2023\\nToday: " + year + "\\n" + system_message }}
{%- if tools is not none %}{{- tools | tojson }}{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n\\n' }}
{%- endif %}"""

PIECES = [
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ messages[0] | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
    "{{ unk_token }}|{{ nothing }}|{{ messages[0].missing }}|{{ tools }}|{{ documents }}",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}"
    "{% endfor %}",
    "{% set ns = namespace(last='') %}{% for m in messages %}{% set ns.last = m.role %}{% endfor %}"
    "{{ ns.last }}",
    "{% macro say(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}"
    "{{ x }}{% endfor %}",
    "{% for m in messages recursive %}{{ m.role ~ ':' ~ loop.depth ~ m.content }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{% else %}none{% endfor %}",
    "{% for m in [] %}{{ m }}{% else %}empty{% endfor %}",
    "{{ '-' * 5 }}{{ 2 ** 8 }}{{ 'a' + 'b' }}{{ 1 + 2 }}{{ [1] * 3 }}{{ 7 // 2 }}{{ 7 % 4 }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | length }}",
    "{{ messages[-1]['content'].split(' ')[0].upper().strip() }}",
    "{{ 'yes' if messages[0].role is string and messages is iterable else 'no' }}",
    "{%- for m in messages -%}\n  {{- m.content -}}\n{%- endfor -%}\n",
    "  {% if true %}\n  lstripped\n  {% endif %}\n  trimmed {# comment #}\n",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "{% set text %}{{ messages[0].content }}!{% endset %}{{ text | length }}{{ text }}",
    "{{ {'a': 1}.items() | list }}{{ dict(b=2) | tojson }}{{ range(3) | list }}",
    "{% macro wrap() %}[{{ caller('in') }}]{% endmacro %}{% call(x) wrap() %}{{ x }}{% endcall %}",
]


@pytest.fixture(scope="session")
def oracle() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=train_byte_level(), **SPECIAL)


@pytest.fixture(scope="session")
def backend() -> tokenizers.Tokenizer:
    return train_byte_level()


class TestEqualsTransformers:
    @pytest.mark.parametrize("template", [CHATML, LLAMA2, LLAMA3, *PIECES])
    @pytest.mark.parametrize("messages", [USER, TALK], ids=["one", "four"])
    @pytest.mark.parametrize("prompt", [True, False])
    def test_text_and_tokens(
        self,
        oracle: Any,
        backend: tokenizers.Tokenizer,
        template: str,
        messages: list[dict[str, str]],
        prompt: bool,
    ) -> None:
        options = {"chat_template": template, "add_generation_prompt": prompt}
        expected = oracle.apply_chat_template(messages, tokenize=False, **options)
        assert ChatTemplate(template, SPECIAL).render(messages, prompt) == expected
        if prompt:
            tokenizer = Tokenizer(backend, special_tokens=SPECIAL, chat_template=template)
            ids = oracle.apply_chat_template(messages, return_dict=False, **options)
            assert tokenizer.encode_chat(messages) == ids

    @given(st.lists(st.tuples(st.sampled_from(chat.ROLES), st.text(max_size=20)), min_size=1))
    @settings(max_examples=100, deadline=None)
    def test_any_conversation(self, oracle: Any, turns: list[tuple[str, str]]) -> None:
        messages = [{"role": role, "content": content} for role, content in turns]
        template = ChatTemplate(CHATML + "{{ messages | tojson }}", SPECIAL)
        assert template.render(messages) == oracle.apply_chat_template(
            messages, chat_template=template.source, add_generation_prompt=True, tokenize=False
        )

    def test_demo_model(self, demo: Tokenizer, demo_file: Any) -> None:
        from transformers import PreTrainedTokenizerFast

        oracle = PreTrainedTokenizerFast.from_pretrained(demo_file.parent, gguf_file=demo_file.name)
        for messages in (USER, TALK):
            assert demo.encode_chat(messages) == oracle.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )

    def test_bos_is_not_doubled(self) -> None:
        """A tokenizer that adds BOS by itself, and a template that writes it too."""
        backend = train_byte_level()
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
        template = "{{ bos_token }}{{ messages[0].content }}"
        tokenizer = Tokenizer(backend, special_tokens=SPECIAL, chat_template=template)
        assert tokenizer.encode("Hi")[:2] == [1, *tokenizer.encode("Hi")[1:2]]
        assert tokenizer.encode_chat([{"role": "user", "content": "Hi"}]) == tokenizer.encode("Hi")


class TestMessages:
    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ("hi", "must be a list, not str"),
            (None, "must be a list, not NoneType"),
            ({"role": "user", "content": "x"}, "must be a list, not dict"),
            ([], "is empty"),
            (["hi"], r"messages\[0\] must be an object with role and content, not str"),
            ([*USER, None], r"messages\[1\] must be an object"),
            ([{"content": "x"}], r"messages\[0\] has no role"),
            ([{"role": "user"}], r"messages\[0\] has no content"),
            ([{"role": "user", "content": None}], r"content must be a string, not NoneType"),
            ([{"role": 5, "content": "x"}], r"messages\[0\].role must be a string, not int"),
            ([{"role": "user", "content": [{"type": "text"}]}], "must be a string, not list"),
            (
                [{"role": "wizard", "content": "x"}],
                "one of system, user, assistant, tool, not 'wizard'",
            ),
            ([{"role": "user", "content": "x", "name": "Al"}], "unknown key 'name'"),
        ],
    )
    def test_refused_by_name(self, messages: Any, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            ChatTemplate(CHATML, {}).render(messages)

    def test_copies_are_plain(self) -> None:
        class Shout(str):
            def __str__(self) -> str:
                return self.upper()

        given = [{"role": "user", "content": Shout("hi")}]
        checked = check_messages(given)
        assert type(checked[0]["content"]) is str
        assert checked[0] is not given[0]

    def test_no_template(self) -> None:
        template = ChatTemplate(None, {})
        assert not template
        with pytest.raises(RequestError, match=r"has no chat template.*give the prompt as text"):
            template.render(USER)

    def test_lone_surrogate(self, demo: Tokenizer) -> None:
        with pytest.raises(RequestError, match="not valid Unicode"):
            demo.encode_chat([{"role": "user", "content": "\ud800"}])


class TestTemplatesThatFail:
    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{{ raise_exception('no system role, please') }}", "refuses.*no system role, please"),
            ("{% for %}", r"not valid \(line 1\)"),
            ("a\n{% endfor %}", r"not valid \(line 2\)"),
            ("{{ messages[0].content + 1 }}", "failed on these messages"),
            ("{{ messages.x.y }}", "failed on these messages"),
            ("{{ 1 / 0 }}", "failed on these messages.*zero"),
            ("{{ ''.__class__.__mro__ }}", "failed.*unsafe"),
            ("{{ messages.append(1) }}", "failed.*unsafe"),
            ("{% include 'etc/passwd' %}", "failed"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed.*recursion"),
        ],
    )
    def test_is_a_request_error(self, template: str, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            ChatTemplate(template, {}).render(USER)

    @pytest.mark.parametrize(
        "template",
        [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}"
            "{% endfor %}{% endfor %}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
            "{{ f(60) }}",
        ],
        ids=["ranges", "lists", "macros"],
    )
    def test_endless(self, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(chat, "MAX_RENDER_SECONDS", 0.2)
        start = time.perf_counter()
        with pytest.raises(RequestError, match="ran for more than"):
            ChatTemplate(template, {}).render(USER)
        assert time.perf_counter() - start < 60

    @pytest.mark.parametrize(
        "template",
        [
            "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
            "{{ 'x' * 10 ** 12 }}",
            "{{ 10 ** 12 * [1] }}",
            "{{ 9 ** 99 ** 99 ** 99 }}",
            "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}"
            "{% endfor %}",
            "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}"
            "{% endfor %}",
            "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
            "{% endfor %}",
        ],
        ids=["output", "text", "list", "power", "square", "tilde", "plus"],
    )
    def test_giant(self, template: str) -> None:
        with pytest.raises(RequestError, match="makes more than"):
            ChatTemplate(template, {}).render(USER)

    def test_the_next_request_is_served(self) -> None:
        template = ChatTemplate("{% if messages|length > 1 %}{{ 1/0 }}{% endif %}ok", {})
        with pytest.raises(RequestError):
            template.render(TALK)
        assert template.render(USER) == "ok"
