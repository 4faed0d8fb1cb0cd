"""Goldens of the tokenizers: ids by Hugging Face's tokenizers, and by sentencepiece where the vocabulary is one of its.

    python tests/golden/make_tokenizer.py SMOLLM2.gguf        (writes tests/golden/data/tokenizer/)
"""

import io
import json
import pathlib
import sys

import sentencepiece
import tokenizers
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import generate_merges

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
    "\u212b \u00c5 A\u030a", "q\u0323\u0307 q\u0307\u0323", "\u1100\u1161\u11a8 \uac01", "\u0958 \u0915\u093c", "\u0301a", "\ufb01 \u2460",
    "a\u180eb\u0085c\u2028d", "\ufeffBOM", "nul\0byte", "'\u017f it'\u017f I'\u212a", "▁", "▁▁a ▁ b", "<0x0A> <0xZZ>", "  \n  x  \n",
    "<s>", " <s> a</s>b </s> ", "<unk><s>x", "a<s>  b", "[TOOL] x [TOOL]y", "x  <mask>  y", "<|im_start|><|im_start|> <|im_end|>",
    "１２３ ٤٥٦ 7⅞", "你好<s>世界", "a,b;c.d!e?f", "　全角　空白。「引用」", "ａｂｃ ＡＢＣ", "Ա Բ ა ბ Ა", "𝔘𝔫𝔦 𐐀𐐨",
]


def smollm2(path):
    path = pathlib.Path(path).resolve()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers' reader of GGUF ignores the pre-tokenizer's name; this is the one of SmolLM2's own tokenizer.json.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, byte_level(True)])
    write("smollm2", [tokenizer(t, add_special_tokens=False).input_ids for t in TEXTS])


def write(name, value):
    (OUT / f"{name}.json").write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")))


def ids_of(tokenizer):
    """Of every text: alone, and as a whole with the template's ids; and its decoding without special tokens."""
    alone = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in alone]
    return {
        "ids": alone,
        "prefix": tokenizer.encode("", add_special_tokens=True).ids,
        "decoded": decoded,
    }


def difference(cases, base):
    """Null where an entry is the base's."""
    return {k: [a if a != b else None for a, b in zip(v, base[k])] if k in base else v for k, v in cases.items()}


def variants(name, base, changes):
    """A tokenizer.json and the members that differ in its variants, each with its ids."""
    file, cases = json.loads(base.to_str()), ids_of(base)
    write(name, {"tokenizer": file, "cases": difference(cases, {"decoded": TEXTS}),
                 "variants": [{"change": change, "cases": difference(changed(file, change), {k: cases[k] for k in ("ids", "decoded")})}
                              for change in changes]})


def changed(file, change):
    cases = ids_of(Tokenizer.from_str(json.dumps(merged(file, change))))
    # Their decoder does not know a special token again whose content the normalizer changed; ours does.
    if any(t["special"] and t["normalized"] for t in change.get("added_tokens", [])):
        del cases["decoded"]
    return cases


def merged(file, change):
    file = json.loads(json.dumps(file))
    for key, value in change.items():
        if key == "model":
            file["model"] |= value
        else:
            file[key] = value
    return file


# -- byte-level --------------------------------------------------------------------------------------------------------

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# DeepSeek LLM's letters, as ranges of code points.
LETTERS = """41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1
3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15
1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3
1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F
2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF
FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"""
letters = "".join("-".join(chr(int(c, 16)) for c in r.split("-")) for r in LETTERS.split())

byte_level = lambda use_regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
split = lambda regex, behavior="isolated", invert=False: pre_tokenizers.Split(Regex(regex), behavior, invert)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
DEEPSEEK = pre_tokenizers.Sequence([
    split("[\r\n]"), split(rf"\s?[{letters}]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
    split("[一-龥ࠀ-一가-\ud7ff]+"), DIGITS, byte_level(False)])


def step(pre):
    return json.loads(pre.__getstate__())


def bytes_tokenizer(name, pre, normalizer=None, post=None, ignore_merges=False, changes=()):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=special,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("[TOOL]", special=False, normalized=True)])
    if post is not None:
        tokenizer.post_processor = post(tokenizer)
    variants(name, tokenizer, changes)


def llama3_post(tokenizer):
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 2)])
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), template])


def added(**flags):
    """The added tokens of bytes_tokenizer, with two more that take white space along."""
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = [base | {"id": i, "content": c} for i, c in enumerate(["<|im_start|>", "<|im_end|>", "<s>", "</s>"])]
    tokens.append(base | {"id": 400, "content": "[TOOL]", "special": False, "normalized": True})
    return tokens + [base | {"id": 401, "content": "<mask>"} | flags]


bytes_tokenizer("gpt-2", byte_level(True), changes=[
    {"pre_tokenizer": step(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True))},
    {"added_tokens": added(lstrip=True)}, {"added_tokens": added(rstrip=True)}, {"added_tokens": added(lstrip=True, rstrip=True)},
    *[{"pre_tokenizer": step(pre_tokenizers.Sequence([split(r"\s+|e", behavior), byte_level(False)]))}
      for behavior in ("removed", "merged_with_previous", "merged_with_next", "contiguous")],
    {"pre_tokenizer": step(pre_tokenizers.Sequence([split(QWEN2, "removed", True), byte_level(False)]))},
    {"pre_tokenizer": step(pre_tokenizers.Sequence([pre_tokenizers.Split(".", "isolated"), pre_tokenizers.Digits(), byte_level(True)]))},
    *[{"normalizer": step(n)} for n in (normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(), normalizers.Replace("a", "bb"))],
])
bytes_tokenizer("smollm", pre_tokenizers.Sequence([DIGITS, byte_level(True)]))
bytes_tokenizer("llama-bpe", pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)]), post=llama3_post, ignore_merges=True,
                changes=[{"model": {"merges": [], "ignore_merges": True}}, {"model": {"ignore_merges": False}}])
bytes_tokenizer("qwen2", pre_tokenizers.Sequence([split(QWEN2), byte_level(False)]), normalizer=normalizers.NFC())
bytes_tokenizer("deepseek-llm", DEEPSEEK)


# -- SentencePiece -----------------------------------------------------------------------------------------------------

def sentencepiece_tokenizer():
    model = io.BytesIO()
    sentences = [t for t in TEXTS if t.strip() and "\0" not in t and "<" not in t]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 3), model_writer=model, model_type="bpe", vocab_size=600, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, character_coverage=0.98, minloglevel=2, max_sentence_length=10000)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = processor.get_piece_size()
    pieces = [processor.id_to_piece(i) for i in range(count)]
    scores = [processor.get_score(i) for i in range(count)]
    types = [2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
             for i in range(count)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = generate_merges(vocab, {p: s for p, s in zip(pieces, scores)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    metaspace = lambda scheme, cut: {
        "normalizer": None, "pre_tokenizer": step(pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=cut))}
    in_text = json.loads(tokenizer.to_str())["added_tokens"]
    variants("sentencepiece", tokenizer, [
        metaspace("first", False), metaspace("always", False), metaspace("never", False), metaspace("always", True),
        {"added_tokens": [t | {"normalized": True} for t in in_text]},
        {"added_tokens": [t | {"lstrip": True, "rstrip": True} for t in in_text]},
        {"model": {"byte_fallback": False}}, {"model": {"byte_fallback": False, "fuse_unk": False}},
    ])
    # sentencepiece's own ids, of the texts that hold no control token: those it reads as characters.
    own = [processor.encode(t) if "<s>" not in t and "</s>" not in t and "<unk>" not in t else None for t in TEXTS]
    write("sentencepiece_model", {"pieces": pieces, "scores": scores, "types": types, "ids": own})


write("texts", TEXTS)
sentencepiece_tokenizer()
if len(sys.argv) > 1:
    smollm2(sys.argv[1])
