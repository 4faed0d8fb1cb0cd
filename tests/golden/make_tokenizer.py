"""Goldens of the byte-level BPE tokenizer: ids by Hugging Face's tokenizers.

    python tests/golden/make_tokenizer.py SMOLLM2.gguf        (writes tests/golden/data/tokenizer/)
"""

import json
import pathlib
import sys

import tokenizers
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

assert tokenizers.__version__.startswith("0."), tokenizers.__version__

OUT = pathlib.Path(__file__).parent / "data" / "tokenizer"
OUT.mkdir(parents=True, exist_ok=True)

TEXTS = [
    "", " ", "  ", "\n", "\n\n", " \n ", "\t\tx", "a", " a", "a ", "Hello, world!", "hello   world", "trailing   ",
    "   leading", "It's I'm you're we'll he'd they've DON'T can't", "1", "12", "123", "1234567890", "3.14159 2,650",
    "E-417 K-09", "x1y22z333", "snake_case camelCase kebab-case", "def f(x):\n    return x ** 2\n", "if (a&&b||!c) {}",
    "<html><body class=\"x\">&amp;</body></html>", "https://example.org/a?b=c&d=%20#e", "C:\\dir\\file.txt",
    "我们今天去公园散步，天气很好。", "胸口压着痛，出冷汗，持续二十分钟", "你好 world 123 中文", "日本語のテキストです。カタカナ", "한국어 문장입니다.",
    "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Привет, мир!", "Ελληνικά", "שלום עולם", "Größe Äpfel naïve façade",
    "e\u0301 combining n\u0303", "🌡️ 🚨 ⚠️ 😀", "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈", "①②③ ½ ² Ⅳ ٣ ३", "“quotes” ‘single’ — dash … «guillemets»",
    "a\u00a0b\u2003c\u3000d", "line1\r\nline2\rline3", "\u200bzero\u200dwidth", "supercalifragilisticexpialidocious" * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "    indented\n\n\n        more", "tab\tseparated\tvalues",
    "!!!???...,,,;;;", "'''\"\"\"```", "$100 €200 £300 ¥400", "100% of 5° at 26.4 °C", "émigré's l'été d'accord", "I'M 'S 'Ll",
    "a\n\nb\n \nc", "word\n", "word \n", " \n\n word", "  two  spaces  ", "\n    x", "(parens) [brackets] {braces}",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "x<|im_end|>", "<|im_start|>", "<|im_ start|>", "<|endoftext|>a",
    "The quick brown fox jumps over the lazy dog. " * 4,
]


def smollm2(path):
    path = pathlib.Path(path).resolve()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers' reader of GGUF ignores the pre-tokenizer's name; this is the one of SmolLM2's own tokenizer.json.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(True)])
    cases = [{"text": t, "ids": tokenizer(t, add_special_tokens=False).input_ids} for t in TEXTS]
    (OUT / "smollm2.json").write_text(json.dumps(cases, ensure_ascii=True))


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def tiny(name, pre):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, special_tokens=["<|im_start|>", "<|im_end|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer)
    data = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["merges"]]
    cases = [{"text": t, "ids": tokenizer.encode(t).ids} for t in TEXTS]
    (OUT / f"{name}.json").write_text(json.dumps({"tokens": tokens, "merges": merges, "cases": cases}, ensure_ascii=True))


byte_level = lambda use_regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
split = lambda regex: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level(False)])
tiny("gpt-2", byte_level(True))
tiny("smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]))
tiny("llama-3", split(LLAMA3))
tiny("qwen2", split(QWEN2))
if len(sys.argv) > 1:
    smollm2(sys.argv[1])
