"""Token ids equal those of transformers, for the demo model and for tokenizers trained here."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_tokenizers import CHATML, train_byte_level
from tokenizers import pre_tokenizers

from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.engine.tokenizer_gguf import SPLITS
from ppinfer.errors import CheckpointError, RequestError

TEXTS = [
    "Hello, my dog is cute",
    " leading space",
    "trailing space ",
    "  two  double  spaces  ",
    "\ttabs\t\tand\nnewlines\n\n\nthree",
    "\r\nwindows\r\nlines\r\n",
    " ",
    "   ",
    "\n",
    "\n\n",
    "a",
    "A",
    "don't can't I'll we've you're he'd I'M SHE'S",
    "UPPER lower MiXeD camelCase snake_case kebab-case",
    "punctuation: !?.,;:'\"()[]{}<>@#$%^&*-_=+|\\/`~",
    "...!!!???---===",
    "Grüße aus Köln, naïve café, Ångström",
    "e\u0301 decomposed, \u00e9 composed, \ufb01 ligature",
    "Съешь ещё этих мягких французских булок",
    "今日はいい天気ですね。",
    "我们今天去公园玩。",
    "오늘 날씨가 좋네요",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Γειά σου Κόσμε",
    "xin chào thế giới",
    "🙂🎉👍🏽👨‍👩‍👧‍👦🇩🇪",
    "text🙂text 🙂 text",
    "zero\u200bwidth\u200djoiner\ufeffbom\u00a0nbsp\u3000ideographic",
    "\u2028line\u2029paragraph\x85next",
    "control\x00nul\x01one\x1bescape\x7fdelete",
    "\x00",
    "\U0010ffff last \ue000 private \ufffd replacement",
    "def f(x):\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) { sum += a[i]; }",
    "<html><body class='x'>&nbsp;</body></html>",
    'SELECT * FROM t WHERE id = "a" AND b <> c;',
    "https://example.org/path?query=value&other=%20#fragment",
    "$\\frac{a}{b} \\leq \\sum_{i} x_i$ ∀x∈ℝ: x²≥½",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "a<|im_end|>b <|im_end|> c",
    "<|im_start",
    "<|im_end|><|im_end|>",
    "<repo_name>me/it<file_sep>main.py",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ĠĊ Ġ the byte alphabet itself",
]

DIGITS = [
    "1",
    "12345",
    " 12 345",
    "2024-11-22T19:00:00Z",
    "\n\n1. first\n\n2. second",
    "a  12   b    345",
    "3.14159 1,000,000 1e-9 0x7f",
    "½ ² ٣ 五 Ⅷ ①",
    "x1y22z333",
]


@pytest.fixture(scope="session")
def oracle(demo_file: Path) -> Any:
    """What transformers makes of the demo file.

    The class that AutoTokenizer finds; asking it directly saves reading the file once more.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(demo_file.parent, gguf_file=demo_file.name)


@pytest.fixture(scope="session")
def exact_oracle(oracle: Any) -> Any:
    """The same with the pre-tokenizer of the model's own tokenizer.json.

    transformers knows no pre-tokenizer "smollm" and takes that of GPT-2, which differs where
    digits follow several blanks. The model was trained, and llama.cpp runs it, with digits first.
    """
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer.from_str(oracle.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **oracle.special_tokens_map)


def assert_equal(tokenizer: Tokenizer, oracle: Any, text: str) -> None:
    for special in (True, False):
        expected = oracle(text, add_special_tokens=special).input_ids
        assert tokenizer.encode(text, add_special_tokens=special) == expected
        for skip in (True, False):
            decoded = oracle.decode(expected, skip_special_tokens=skip)
            assert tokenizer.decode(expected, skip_special_tokens=skip) == decoded


class TestDemo:
    @pytest.mark.parametrize("text", TEXTS)
    def test_equals_transformers(self, demo: Tokenizer, oracle: Any, text: str) -> None:
        assert_equal(demo, oracle, text)

    @pytest.mark.parametrize("text", TEXTS + DIGITS)
    def test_equals_the_models_own(self, demo: Tokenizer, exact_oracle: Any, text: str) -> None:
        assert_equal(demo, exact_oracle, text)

    @given(st.text(max_size=60))
    @settings(max_examples=300, deadline=None)
    def test_equals_for_any_text(self, demo: Tokenizer, exact_oracle: Any, text: str) -> None:
        assert_equal(demo, exact_oracle, text)

    @given(st.text(alphabet="a1 \n\t'<|im_end|>é🙂", max_size=60))
    @settings(max_examples=300, deadline=None)
    def test_equals_for_tricky_text(self, demo: Tokenizer, exact_oracle: Any, text: str) -> None:
        assert_equal(demo, exact_oracle, text)

    def test_digits_after_blank_lines(self, demo: Tokenizer) -> None:
        """One token for the two newlines, which GPT-2's pre-tokenizer would make two."""
        assert [demo.token_text(i) for i in demo.encode("\n\n12")] == ["\n\n", "1", "2"]

    def test_facts(self, demo: Tokenizer, oracle: Any) -> None:
        assert demo.vocab_size == len(oracle) == 49152
        assert demo.eos_token_ids == {oracle.eos_token_id} == {2}
        assert demo.bos_token_id == oracle.bos_token_id
        assert demo.special_tokens == oracle.special_tokens_map
        assert demo.special_ids == set(oracle.added_tokens_decoder)
        assert demo.notes == ()

    def test_every_token_decodes_alike(self, demo: Tokenizer, oracle: Any) -> None:
        ids = range(0, demo.vocab_size, 7)
        texts = [demo.pieces[i][0].decode(errors="replace") for i in ids]
        assert texts == [oracle.decode([i]) for i in ids]

    def test_add_bos_token(self, demo_metadata: dict[str, Any], oracle: Any) -> None:
        metadata = demo_metadata | {"tokenizer.ggml.add_bos_token": True}
        tokenizer = Tokenizer.from_gguf(metadata)
        assert tokenizer.encode("Hi") == [1, *oracle("Hi").input_ids]
        assert tokenizer.encode("Hi", add_special_tokens=False) == oracle("Hi").input_ids
        metadata["tokenizer.ggml.add_eos_token"] = True
        assert Tokenizer.from_gguf(metadata).encode("Hi") == [1, *oracle("Hi").input_ids, 2]

    def test_construction_is_fast(self, demo_metadata: dict[str, Any]) -> None:
        start = time.thread_time()
        Tokenizer.from_gguf(demo_metadata)
        assert time.thread_time() - start < 1.0  # 0.11 s on a free core


class TestText:
    def test_empty_text_has_no_tokens(self, demo: Tokenizer) -> None:
        assert demo.encode("") == []
        assert demo.decode([]) == ""

    @pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
    def test_lone_surrogate(self, demo: Tokenizer, text: str) -> None:
        with pytest.raises(RequestError, match="not valid Unicode"):
            demo.encode(text)

    def test_not_a_string(self, demo: Tokenizer) -> None:
        with pytest.raises(RequestError, match="not bytes"):
            demo.encode(b"bytes")  # type: ignore[arg-type]

    def test_ids_outside_the_vocabulary_are_nothing(self, demo: Tokenizer) -> None:
        assert demo.decode([49152, 28120, 10**6]) == demo.decode([28120])
        assert demo.pieces[10**6] == (b"", "")

    def test_a_piece_has_text_where_it_is_whole_characters(self, demo: Tokenizer) -> None:
        pieces = [demo.pieces[i] for i in demo.encode("so é日")]
        assert pieces[0] == (b"so", "so")
        assert b"".join(data for data, _ in pieces) == "so é日".encode()
        assert [text for _, text in pieces[-2:]] == [None, None]


class TestFolder:
    @pytest.mark.parametrize("folder", ["byte_level_folder", "sentencepiece_folder"])
    def test_equals_transformers(self, folder: str, request: pytest.FixtureRequest) -> None:
        from transformers import AutoTokenizer

        path = request.getfixturevalue(folder)
        oracle = AutoTokenizer.from_pretrained(path)
        tokenizer = Tokenizer.from_folder(path)
        for text in TEXTS + DIGITS + ["<s>a</s>", "a <tool> b", "x<|extra|>y"]:
            assert_equal(tokenizer, oracle, text)
        assert tokenizer.vocab_size == len(oracle)
        assert tokenizer.special_tokens == oracle.special_tokens_map

    def test_ends_of_sequence(self, byte_level_folder: Path, sentencepiece_folder: Path) -> None:
        """generation_config.json goes before config.json; the tokenizer's own is always one."""
        assert Tokenizer.from_folder(byte_level_folder).eos_token_ids == {0, 2}
        assert Tokenizer.from_folder(sentencepiece_folder).eos_token_ids == {2}

    def test_bos_is_added_and_nothing_truncated(self, sentencepiece_folder: Path) -> None:
        tokenizer = Tokenizer.from_folder(sentencepiece_folder)
        ids = tokenizer.encode("one two three four five six seven")
        assert ids[0] == tokenizer.bos_token_id == 1
        assert len(ids) > 8

    def test_special_tokens_map_of_old_checkpoints(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        train_byte_level().save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        (tmp_path / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        )
        special = {"eos_token": "<|endoftext|>", "pad_token": {"content": "<pad>", "lstrip": False}}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
        tokenizer = Tokenizer.from_folder(tmp_path)
        assert_equal(tokenizer, AutoTokenizer.from_pretrained(tmp_path), "a<pad>b<|endoftext|>")
        assert tokenizer.eos_token_ids == {0}

    @pytest.mark.parametrize(
        ("files", "template"),
        [
            ({}, CHATML),
            ({"chat_template.jinja": "of a file"}, "of a file"),
            ({"chat_template.json": '{"chat_template": "of a processor"}'}, CHATML),
        ],
    )
    def test_chat_template_files(
        self, byte_level_folder: Path, tmp_path: Path, files: dict[str, str], template: str
    ) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((byte_level_folder / name).read_bytes())
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        assert Tokenizer.from_folder(tmp_path).chat_template.source == template

    def test_chat_templates_by_name(self, tmp_path: Path) -> None:
        train_byte_level().save(str(tmp_path / "tokenizer.json"))
        named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({"chat_template": named}))
        assert Tokenizer.from_folder(tmp_path).chat_template.source == "d"
        path.write_text("{}")
        assert not Tokenizer.from_folder(tmp_path).chat_template

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("tokenizer.json", None, "has no tokenizer.json"),
            ("tokenizer.json", "{", "not a readable tokenizer"),
            ("tokenizer.json", '{"model": {"type": "Magic"}}', "not a readable tokenizer"),
            ("tokenizer_config.json", "[1]", "must hold a JSON object"),
            ("tokenizer_config.json", "{nonsense", "not readable JSON"),
            ("tokenizer_config.json", "[" * 100_000, "not readable JSON"),
            ("tokenizer_config.json", '{"eos_token": 5}', "special token"),
            ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "damaged"),
            ("tokenizer_config.json", '{"added_tokens_decoder": {"1": 3}}', "damaged"),
        ],
    )
    def test_damaged(self, tmp_path: Path, name: str, content: str | None, message: str) -> None:
        train_byte_level().save(str(tmp_path / "tokenizer.json"))
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.from_folder(tmp_path)


class TestSentencePieceFromGGUF:
    def test_equals_transformers(
        self, sentencepiece: Tokenizer, sentencepiece_metadata: dict[str, Any], tmp_path: Path
    ) -> None:
        oracle = _through_a_file(sentencepiece_metadata, tmp_path)
        for text in TEXTS + DIGITS + ["<s>a</s> b", "x<think>  y", "    four"]:
            assert_equal(sentencepiece, oracle, text)
        assert sentencepiece.encode("The fox")[0] == 1

    def test_without_prefix(self, sentencepiece_metadata: dict[str, Any]) -> None:
        metadata = sentencepiece_metadata | {"tokenizer.ggml.add_space_prefix": False}
        tokenizer = Tokenizer.from_gguf(metadata)
        ids = tokenizer.encode("the fox")
        assert tokenizer.token_text(ids[1])[0] == "t"
        assert tokenizer.decode(ids) == "the fox"

    def test_scores_must_be_there(self, sentencepiece_metadata: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match="score"):
            Tokenizer.from_gguf(sentencepiece_metadata | {"tokenizer.ggml.scores": [0.0]})


def _through_a_file(metadata: dict[str, Any], folder: Path) -> Any:
    """What transformers makes of a GGUF file with this tokenizer."""
    from gguf import GGUFWriter
    from transformers import AutoTokenizer

    writer = GGUFWriter(folder / "t.gguf", "llama")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 64),
        (writer.add_head_count, 2),
        (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 10000.0),
        (writer.add_vocab_size, len(metadata["tokenizer.ggml.tokens"])),
    ):
        add(value)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return AutoTokenizer.from_pretrained(folder, gguf_file="t.gguf")


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    state = json.loads(train_byte_level().to_str())
    vocab = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, "<｜User｜>", "<think>"],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3) + [3, 4],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 1,
    }


class TestByteLevelFromGGUF:
    def test_regexes_equal_those_of_transformers(self) -> None:
        mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
        known = mapping.GGUF_PRE_TOKENIZER_SPLITS
        listed = {name: split.regex for name, split in SPLITS.items() if split.regex}
        assert listed == {name: known[name] for name in listed}

    def test_qwen2_equals_its_class_in_transformers(self, metadata: dict[str, Any]) -> None:
        from transformers import Qwen2Tokenizer

        vocab = {t: i for i, t in enumerate(metadata["tokenizer.ggml.tokens"])}
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        oracle = Qwen2Tokenizer(vocab=vocab, merges=merges)
        tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "qwen2"})
        for text in TEXTS + DIGITS:
            if "<|" not in text:
                assert_equal(tokenizer, oracle, text)

    @pytest.mark.parametrize("name", list(SPLITS))
    def test_every_known_name_loads(self, metadata: dict[str, Any], name: str) -> None:
        tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": name})
        text = "There they are: 12345 l'été\n\n"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert (ids[0] == 0) == SPLITS[name].add_bos

    def test_tokens_outside_the_byte_alphabet(self, metadata: dict[str, Any]) -> None:
        """Markers of DeepSeek are written with characters that byte-level BPE never makes."""
        tokenizer = Tokenizer.from_gguf(metadata)
        user, think = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
        ids = tokenizer.encode("<｜User｜>fox<think>")
        assert (ids[0], ids[-1]) == (user, think)
        assert tokenizer.decode(ids) == "fox<think>"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "<｜User｜>fox<think>"
        assert tokenizer.eos_token_ids == {1, 2}

    def test_missing_name_is_noted(self, metadata: dict[str, Any]) -> None:
        metadata = {k: v for k, v in metadata.items() if k != "tokenizer.ggml.pre"}
        assert "GPT-2 is assumed" in Tokenizer.from_gguf(metadata).notes[0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model": "rwkv"}, "of the kind 'rwkv'"),
            ({"model": None}, "of the kind None"),
            ({"pre": "martian"}, "pre-tokenizer 'martian' is not known; known: default, gpt-2"),
            ({"tokens": None}, "no tokenizer.ggml.tokens"),
            ({"tokens": ["a", "a"]}, "lists a token twice"),
            ({"tokens": ["a", 1]}, "more than strings"),
            ({"merges": None}, "no tokenizer.ggml.merges"),
            ({"merges": ["a"]}, "damaged"),
            ({"merges": ["a b c"]}, "damaged"),
            ({"merges": ["x y"], "tokens": ["x"]}, "damaged"),
            ({"token_type": [1]}, "token types"),
            ({"bos_token_id": 10**6}, "bos_token_id is 1000000"),
            ({"eos_token_id": -1}, "eos_token_id is -1"),
            ({"eot_token_id": "x"}, "eot_token_id is 'x'"),
        ],
    )
    def test_damaged(self, metadata: dict[str, Any], change: dict[str, Any], message: str) -> None:
        changed = {f"tokenizer.ggml.{key}": value for key, value in change.items()}
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.from_gguf(metadata | changed)


def test_a_tokenizer_with_no_decoder(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


class TestPrompts:
    def test_kinds(self, demo: Tokenizer) -> None:
        assert demo.encode_prompt("Hi") == ("Hi", demo.encode("Hi"))
        assert demo.encode_prompt([5, 6]) == (None, [5, 6])
        messages = [{"role": "user", "content": "Hi"}]
        text, ids = demo.encode_prompt(messages)
        assert text == demo.chat_template.render(messages)
        assert ids == demo.encode_chat(messages)

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("", "comes to no token"),
            ([], "comes to no token"),
            ([1, "a"], "either token ids or chat messages, but has a str"),
            ([True], "has a bool"),
            ([1.0], "has a float"),
            ([{"role": "user", "content": "x"}, 5], r"messages\[1\] must be an object"),
            (5, "not int"),
            (b"x", "not bytes"),
            (None, "not NoneType"),
        ],
    )
    def test_refused(self, demo: Tokenizer, prompt: Any, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            demo.encode_prompt(prompt)
