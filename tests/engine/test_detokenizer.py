"""What is streamed joins to what decoding everything at once gives, cut before a stop string."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from ppinfer.engine.detokenizer import Detokenizer, StopStrings
from ppinfer.engine.tokenizer import Tokenizer

ANY = settings(max_examples=300, deadline=None)


def chunks(ids: list[int], cuts: list[int]) -> list[list[int]]:
    bounds = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[start:end] for start, end in pairwise(bounds)]


def stream(tokenizer: Tokenizer, parts: list[list[int]], skip: bool = True) -> list[str]:
    text = Detokenizer(tokenizer, skip_special_tokens=skip)
    return [*(push(text, part) for part in parts), text.finish()]


def push(text: Detokenizer, ids: list[int]) -> str:
    return "".join(text.push(token) for token in ids)


def check(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    for skip in (True, False):
        expected = tokenizer.decode(ids, skip_special_tokens=skip)
        assert "".join(stream(tokenizer, chunks(ids, cuts), skip)) == expected
        assert "".join(stream(tokenizer, [[i] for i in ids], skip)) == expected


CUTS = st.lists(st.integers(0, 100), max_size=8)


@pytest.fixture(scope="module")
def by_byte(demo: Tokenizer) -> dict[int, int]:
    """Tokens of single bytes; the vocabulary lacks some that no text has."""
    tokens = {demo.pieces[index][0]: index for index in range(1000)}
    return {token[0]: index for token, index in tokens.items() if len(token) == 1}


class TestJoinsToTheWhole:
    @given(ids=st.lists(st.integers(0, 49200), max_size=40), cuts=CUTS)
    @ANY
    def test_any_tokens_of_the_demo(self, demo: Tokenizer, ids: list[int], cuts: list[int]) -> None:
        check(demo, ids, cuts)

    @given(data=st.binary(max_size=40), cuts=CUTS)
    @example(data="é🙂日".encode(), cuts=[])
    @example(data=b"\xf0\x9f\x99a\xed\xa0\x80\xc0\x80\xf0\x80", cuts=[])
    @ANY
    def test_any_bytes(
        self, demo: Tokenizer, by_byte: dict[int, int], data: bytes, cuts: list[int]
    ) -> None:
        check(demo, [by_byte[byte] for byte in data if byte in by_byte], cuts)

    @given(text=st.text(max_size=40), cuts=CUTS)
    @ANY
    def test_any_text(self, demo: Tokenizer, text: str, cuts: list[int]) -> None:
        check(demo, demo.encode(text), cuts)

    @given(data=st.data(), cuts=CUTS)
    @ANY
    def test_any_tokens_of_sentencepiece(
        self, sentencepiece: Tokenizer, data: st.DataObject, cuts: list[int]
    ) -> None:
        size = sentencepiece.vocab_size
        # As many single bytes as other tokens, so that rows of them come and go.
        token = st.integers(0, size + 5) | st.integers(3, 258)
        check(sentencepiece, data.draw(st.lists(token, max_size=40)), cuts)

    @given(text=st.text(max_size=40), cuts=CUTS)
    @ANY
    def test_any_text_in_sentencepiece(
        self, sentencepiece: Tokenizer, text: str, cuts: list[int]
    ) -> None:
        check(sentencepiece, sentencepiece.encode(text), cuts)

    @given(ids=st.lists(st.integers(0, 6), max_size=30), cuts=CUTS)
    @ANY
    def test_other_decoders(self, ids: list[int], cuts: list[int]) -> None:
        vocab = {"▁": 0, "▁a": 1, "b": 2, "▁▁": 3, "": 4, "é": 5, "\ufffd": 6}
        backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="b"))
        check(Tokenizer(backend), ids, cuts)
        for decoder in (
            decoders.Metaspace(),
            decoders.Metaspace(prepend_scheme="never"),
            decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
        ):
            backend.decoder = decoder
            check(Tokenizer(backend), ids, cuts)


class TestHeldBack:
    def test_no_half_characters(self, demo: Tokenizer) -> None:
        text = "日本語🙂é"
        parts = stream(demo, [[i] for i in demo.encode(text)])
        assert "".join(parts) == text
        assert all("\ufffd" not in part for part in parts)
        assert "" in parts  # some token ends inside a character

    def test_a_real_replacement_character_comes_at_once(self, demo: Tokenizer) -> None:
        text = Detokenizer(demo)
        assert push(text, demo.encode("a\ufffd")) == "a\ufffd"

    def test_unfinished_character_at_the_end(self, demo: Tokenizer) -> None:
        text = Detokenizer(demo)
        ids = demo.encode("🙂")
        assert len(ids) > 1
        assert push(text, ids[:-1]) == ""
        assert text.finish() == demo.decode(ids[:-1]) == "\ufffd"

    def test_a_row_of_bytes_waits_for_its_end(self, sentencepiece: Tokenizer) -> None:
        ids = sentencepiece.encode("x🙂y", add_special_tokens=False)
        parts = stream(sentencepiece, [[i] for i in ids])
        assert "".join(parts) == "x🙂y"
        assert parts[-2:] == ["🙂y", ""]

    def test_leading_spaces(self, sentencepiece: Tokenizer) -> None:
        """The space before the first word is the tokenizer's own; later ones are the text's."""
        ids = sentencepiece.encode("the dog the", add_special_tokens=False)
        assert "".join(stream(sentencepiece, [[i] for i in ids])) == "the dog the"
        eos = 2
        parts = stream(sentencepiece, [[i] for i in [eos, ids[0], eos, *ids]])
        assert "".join(parts) == "the the dog the"

    def test_special_tokens_are_skipped(self, demo: Tokenizer) -> None:
        ids = demo.encode("<|im_start|>a<|im_end|>b")
        assert "".join(stream(demo, [ids])) == "ab"
        assert "".join(stream(demo, [ids], skip=False)) == "<|im_start|>a<|im_end|>b"


class TestCost:
    @pytest.mark.parametrize("name", ["demo", "sentencepiece"])
    def test_grows_with_the_text_only(self, name: str, request: pytest.FixtureRequest) -> None:
        tokenizer = request.getfixturevalue(name)
        hostile = {"demo": [216, 159] * 5000, "sentencepiece": list(range(131, 259)) * 80}[name]
        for ids in (tokenizer.encode("The lazy dog jumps 🙂. " * 700), hostile):
            start = time.thread_time()
            text = Detokenizer(tokenizer, stop=("xyz", "The lazy cat", "." * 50))
            for token in ids:
                text.push(token)
            text.finish()
            assert (time.thread_time() - start) / len(ids) < 500e-6  # about 2 and 20 us


class TestStopStrings:
    @pytest.mark.parametrize(
        ("stops", "parts", "given", "found"),
        [
            ((), ["ab", "c"], ["ab", "c", ""], None),
            (("b",), ["abc"], ["a", ""], "b"),
            (("bc",), ["ab", "cd"], ["a", "", ""], "bc"),
            (("bc",), ["ab", "d"], ["a", "bd", ""], None),
            (("bc",), ["ab"], ["a", "b"], None),
            (("aab",), ["a", "a", "a", "b"], ["", "", "a", "", ""], "aab"),
            (("abab", "c"), ["aba", "c"], ["", "aba", ""], "c"),
            (("bc", "abcd"), ["abcd"], ["a", ""], "bc"),
            (("b", "ab"), ["ab"], ["", ""], "ab"),
            (("\n\n",), ["x\n", "\n", "y"], ["x", "", "", ""], "\n\n"),
            (("🙂",), ["a🙂b"], ["a", ""], "🙂"),
        ],
    )
    def test_cases(
        self, stops: tuple[str, ...], parts: list[str], given: list[str], found: str | None
    ) -> None:
        matcher = StopStrings(stops)
        assert [*(matcher.push(part) for part in parts), matcher.finish()] == given
        assert matcher.found == found

    @given(
        text=st.text(alphabet="ab", max_size=40),
        stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=4),
        cuts=CUTS,
    )
    @ANY
    def test_equals_the_definition(self, text: str, stops: list[str], cuts: list[int]) -> None:
        matcher = StopStrings(stops)
        bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
        parts = [matcher.push(text[start:end]) for start, end in pairwise(bounds)]
        out = "".join([*parts, matcher.finish()])
        ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
        if not ends:
            assert (out, matcher.found) == (text, None)
        else:
            end, length, stop = min(ends)
            assert (out, matcher.found) == (text[: end + length], stop)

    @given(
        ids=st.lists(st.integers(0, 300), max_size=60),
        stops=st.lists(st.text(alphabet="abetn \n", min_size=1, max_size=3), max_size=3),
    )
    @ANY
    def test_in_a_stream(self, demo: Tokenizer, ids: list[int], stops: list[str]) -> None:
        whole = demo.decode(ids)
        expected = StopStrings(stops)
        want = expected.push(whole) + expected.finish()
        text = Detokenizer(demo, stops)
        got = push(text, ids) + text.finish()
        assert (got, text.stop_string) == (want, expected.found)

    def test_no_text_after_the_stop(self, demo: Tokenizer) -> None:
        ids = demo.encode("one two three four")
        text = Detokenizer(demo, ("two",))
        assert push(text, ids) == "one "
        assert text.stop_string == "two"
        assert (push(text, ids), text.finish()) == ("", "")

    def test_across_tokens_and_characters(self, demo: Tokenizer) -> None:
        text = Detokenizer(demo, ("🙂!",))
        assert push(text, demo.encode("ok 🙂! more")) == "ok "
        assert text.stop_string == "🙂!"

    def test_long_stop_strings_cost_little(self) -> None:
        start = time.thread_time()
        matcher = StopStrings(["a" * 100_000 + "b"])
        assert matcher.push("a" * 300_000) == "a" * 200_000
        assert time.thread_time() - start < 2
