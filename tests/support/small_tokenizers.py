"""Tokenizers trained on a few lines of text, and a chat template to go with them."""

from __future__ import annotations

import json

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, then the dog jumps over the fox.",
    "def forward(self, hidden_states):\n    return self.norm(hidden_states)\n",
    "Pipelines have stages; stages have layers; layers have weights. There they are.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "今日はいい天気ですね。今日は晴れ、明日は雨。",
    "1 2 3 45 678 9,000 3.14159",
] * 5

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE with ChatML markers, as most models of today."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    trained.train_from_iterator(CORPUS, trainer)
    trained.add_tokens([AddedToken("<tool>", normalized=False)])
    return trained


def train_sentencepiece() -> tokenizers.Tokenizer:
    """BPE over pieces with byte fallback, as the tokenizer.json of Llama 2 has it."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", *alphabet]
    )
    lines = [word for line in CORPUS for word in line.split()]
    trained.train_from_iterator(lines, trainer)
    state = json.loads(trained.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # bytes are no added tokens
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    state["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    return tokenizers.Tokenizer.from_str(json.dumps(state))
