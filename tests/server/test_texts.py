"""Templates run beside the event loop, within their time, and what they raise is told plainly."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.fake_async_engine import RunningServer, small_tokenizer, wait_until
from support.small_tokenizers import train_byte_level, train_sentencepiece

from ppinfer.engine import chat
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.request import TokenLogprobs
from ppinfer.server import texts
from ppinfer.server.logprobs import CompletionLogprobsMaker, TokenTexts, chat_logprobs


def with_template(server: RunningServer, template: str | None) -> None:
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    server.engine.tokenizer = Tokenizer(
        train_byte_level(), special_tokens=special, chat_template=template
    )


class Clock:
    """Stands still unless it is moved."""

    now, looks = 0.0, 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "words"),
        [
            ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
            ("{{ messages[0].content.nothing.at_all }}", "template failed"),
            ("{{ messages.__class__.__mro__ }}", "template"),
            ("{% for", "not valid"),
            (None, "no chat template"),
            ("", "empty"),
        ],
    )
    def test_refusals(self, server: RunningServer, template: str | None, words: str) -> None:
        with_template(server, template)
        answer = server.chat()
        assert (answer.status, answer.error["param"]) == (400, "messages")
        assert words in answer.error["message"]
        assert "0x" not in answer.error["message"]

    def test_a_loop_holds_nobody_up(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock()
        monkeypatch.setattr(chat, "time", clock)
        monkeypatch.setattr(texts, "TIME_LIMIT", 60.0)
        with_template(
            server, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        )
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(server.chat()))
        thread.start()
        wait_until(lambda: clock.looks > 1)
        for _ in range(5):
            assert server.complete([5, 6]).status == 200
        assert not answers
        clock.now += chat.MAX_RENDER_SECONDS + 0.1
        thread.join()
        assert (answers[0].status, answers[0].error["param"]) == (400, "messages")
        assert "ran for more than 2 seconds" in answers[0].error["message"]

    def test_a_thread_that_is_stuck(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What no budget inside can stop is left behind."""
        monkeypatch.setattr(texts, "TIME_LIMIT", 0.1)
        release = threading.Event()

        class Stuck(Tokenizer):
            def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
                release.wait(60)
                return [5]

        server.engine.tokenizer = Stuck(train_byte_level())
        for _ in range(3):
            answer = server.complete("x")
            assert (answer.status, answer.error["param"]) == (400, "prompt")
        release.set()
        server.engine.tokenizer = small_tokenizer()
        monkeypatch.setattr(texts, "TIME_LIMIT", 60.0)
        assert server.complete("x").status == 200


class TestTokenTexts:
    def test_tokens_join_to_the_text(self) -> None:
        for backend in (train_byte_level(), train_sentencepiece()):
            tokenizer = Tokenizer(backend)
            ids = tokenizer.encode("The fox — 今日 🙂 there", add_special_tokens=False)
            found = TokenTexts(tokenizer)
            data = b"".join(found.bytes_of(token) for token in ids)
            assert data.decode().strip() == "The fox — 今日 🙂 there"
            names = [found.text_of(token) for token in ids]
            assert any(name.startswith("bytes:\\x") for name in names)
            assert "bytes:\\xf0" in "".join(names)
            assert " fox" in names or found.text_of(ids[1]).startswith(" ")

    def test_without_a_tokenizer(self) -> None:
        assert TokenTexts(None).text_of(17) == "token_id:17"

    def test_no_infinity(self) -> None:
        found = TokenTexts(small_tokenizer())
        entry = TokenLogprobs(40, float("-inf"), {41: float("-inf")})
        (made,) = chat_logprobs([entry], found).content
        assert (made.logprob, made.top_logprobs[0].logprob) == (-9999.0, -9999.0)
        old = CompletionLogprobsMaker(found, frozenset()).make([entry])
        assert old.token_logprobs == [-9999.0]
        assert set(old.top_logprobs[0] or {}) == {found.text_of(40), found.text_of(41)}
