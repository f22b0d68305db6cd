"""A tokenizer from the metadata of a GGUF file, which carries no ``tokenizer.json``.

A GGUF file names its vocabulary's kind (``tokenizer.ggml.model``) and, for byte-level BPE, the way
text is cut before the merges (``tokenizer.ggml.pre``). What such a name means is written down
nowhere but in the programs that read it; a name that is not listed here is refused, since a wrong
cut gives wrong tokens without any error.

Where ``transformers`` and llama.cpp disagree about a name, the model's own ``tokenizer.json``
decides: smollm cuts single digits off, qwen2 composes Unicode (NFC), llama-bpe prefers a whole word
of the vocabulary to its merges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from ppinfer.engine.tokenizer_parts import TokenizerParts
from ppinfer.errors import CheckpointError

CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF that are matched whole in a text; control tokens are also left out of it."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SYMBOLS_OR_PATH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_CASED = (f"{_PREFIX}{_UPPER}*{_LOWER}+", f"{_PREFIX}{_UPPER}+{_LOWER}*")

_LLAMA3 = "|".join((_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _SYMBOLS, _SPACES))
_QWEN2 = "|".join((_CONTRACTIONS, _WORD, r"\p{N}", _SYMBOLS, _SPACES))
_TEKKEN = "|".join((*_CASED, r"\p{N}", _SYMBOLS_OR_PATH, _SPACES))
_GPT4O = "|".join(
    (*(f"{word}{_CONTRACTIONS}?" for word in _CASED), r"\p{N}{1,3}", _SYMBOLS_OR_PATH, _SPACES)
)


@dataclass(frozen=True)
class _Split:
    """How one named vocabulary cuts text; no ``regex`` means the one of GPT-2."""

    regex: str | None = None
    digits: bool = False  # cut every digit off first
    nfc: bool = False
    ignore_merges: bool = False  # a word of the vocabulary is taken whole
    add_bos: bool = False  # where the file does not say


_GPT2 = _Split()
_LLAMA_BPE = _Split(_LLAMA3, ignore_merges=True, add_bos=True)
_QWEN = _Split(_QWEN2, nfc=True)

SPLITS: dict[str, _Split] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _Split(digits=True),
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "falcon3": _LLAMA_BPE,
    "dbrx": _Split(_LLAMA3),
    "smaug-bpe": _Split(_LLAMA3),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "tekken": _Split(_TEKKEN, ignore_merges=True, add_bos=True),
    "gpt-4o": _Split(_GPT4O),
    "llama4": _Split(_GPT4O),
}


_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_ENDS = ("eos", "eot", "eom")  # end of sequence, of turn, of message


def build(metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer that ``metadata`` describes.

    Raises:
        CheckpointError: a part is missing or damaged, or its kind is not known.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokens")
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise CheckpointError("The GGUF file's tokenizer lists a token twice.")
    try:
        if kind == "gpt2":
            backend, add_bos, notes = _byte_level(metadata, vocab)
        elif kind == "llama":
            backend, add_bos, notes = _sentencepiece(metadata, vocab)
        else:
            raise CheckpointError(
                f"The GGUF file's tokenizer is of the kind {kind!r}; known: gpt2 (byte-level BPE) "
                "and llama (SentencePiece)."
            )
        _add_whole_tokens(backend, metadata, tokens)
        _add_bos_and_eos(backend, metadata, tokens, add_bos)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"The GGUF file's tokenizer is damaged: {error}") from error
    named = {name: _token_id(metadata, key, len(tokens)) for name, key in _NAMES.items()}
    ends = [_token_id(metadata, key, len(tokens)) for key in _ENDS]
    template = metadata.get("tokenizer.chat_template")
    return TokenizerParts(
        backend=backend,
        special_tokens={name: tokens[i] for name, i in named.items() if i is not None},
        eos_token_ids=[index for index in ends if index is not None],
        chat_template=template if isinstance(template, str) else None,
        notes=notes,
    )


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings that must be there."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise CheckpointError(f"The GGUF file has no tokenizer.ggml.{key}.")
    if not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"The GGUF file's tokenizer.ggml.{key} holds more than strings.")
    return list(value)


def _token_id(metadata: Mapping[str, Any], key: str, vocab_size: int) -> int | None:
    """The id stored as ``tokenizer.ggml.{key}_token_id``, checked against the vocabulary."""
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < vocab_size:
        raise CheckpointError(
            f"The GGUF file's tokenizer.ggml.{key}_token_id is {value!r}, "
            f"but its vocabulary has {vocab_size} tokens."
        )
    return int(value)


_Built = tuple[tokenizers.Tokenizer, bool, tuple[str, ...]]


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int]) -> _Built:
    name = metadata.get("tokenizer.ggml.pre")
    notes: tuple[str, ...] = ()
    if name is None:
        notes = ("The GGUF file does not name its pre-tokenizer; that of GPT-2 is assumed.",)
    split = SPLITS.get(name or "default")
    if split is None:
        raise CheckpointError(
            f"The GGUF file's pre-tokenizer {name!r} is not known; known: {', '.join(SPLITS)}. "
            "Use the model's safetensors folder, which carries its own tokenizer.json."
        )
    merges = []
    for merge in _strings(metadata, "merges"):
        left, right = merge.split(" ")
        merges.append((left, right))
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=split.ignore_merges)
    )
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.regex:
        steps.append(pre_tokenizers.Split(Regex(split.regex), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.regex))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend, split.add_bos, notes


def _sentencepiece(metadata: Mapping[str, Any], vocab: dict[str, int]) -> _Built:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, Sequence) or len(scores) != len(vocab):
        raise CheckpointError("The GGUF file's tokenizer does not give every token a score.")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_by_score(vocab, scores),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first" if prefix else "never", split=False
    )
    steps: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend, True, ()


def _merges_by_score(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose whole has the best score: that order, as merges."""
    found: list[tuple[float, int, int, str, str]] = []
    for (token, _), score in zip(vocab.items(), scores, strict=True):
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocab and token[cut:] in vocab
        ]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found.extend((score, len(left), len(right), left, right) for left, right in pairs)
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _add_whole_tokens(
    backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: list[str]
) -> None:
    """Control and user-defined tokens are found whole in a text, before it is cut."""
    types = metadata.get("tokenizer.ggml.token_type") or ()
    if len(types) not in (0, len(tokens)):
        raise CheckpointError(
            f"The GGUF file's tokenizer has {len(tokens)} tokens but {len(types)} token types."
        )
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (CONTROL, USER_DEFINED) and token
    ]
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])


def _add_bos_and_eos(
    backend: tokenizers.Tokenizer,
    metadata: Mapping[str, Any],
    tokens: list[str],
    add_bos_by_default: bool,
) -> None:
    """What encoding with special tokens puts around a text."""
    bos = _token_id(metadata, "bos", len(tokens))
    eos = _token_id(metadata, "eos", len(tokens))
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos_by_default)
    add_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    before = [(tokens[bos], bos)] if add_bos and bos is not None else []
    after = [(tokens[eos], eos)] if add_eos and eos is not None else []
    if before or after:
        parts = [token for token, _ in before] + ["$A"] + [token for token, _ in after]
        backend.post_processor = processors.TemplateProcessing(
            single=parts, pair=[*parts, "$B"], special_tokens=before + after
        )
