"""Goldens of BERT's tokenizer: ids by Hugging Face's tokenizers of a small WordPiece vocabulary in several settings, and
of MiniLM's.

    python tests/golden/make_wordpiece.py [MINILM_FOLDER]        (writes tests/golden/data/tokenizer/wordpiece*.json)
"""

import json
import pathlib
import sys

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

assert tokenizers.__version__.startswith("0."), tokenizers.__version__

OUT = pathlib.Path(__file__).parent / "data" / "tokenizer"
TEXTS = json.loads((OUT / "texts.json").read_text()) + [
    "What are the symptoms of Bronchitis ?", "UPPER Case ÀÉÎÕÜ Çß İstanbul ΑΣ ς Ǆ", "re-tokenize: don't, can't, won't; it's they've we're I'm",
    "[CLS] a [SEP] [MASK] [UNK] [PAD]", "[cls] [ MASK]", "x[MASK]y", "\u0000a\u0001b\u0008c\u007fd\u009fe", "soft\u00adhyphen word\u2060joiner \u202aabc\u202c",
    "a\tb\u000bc\u000cd\u001ce\u0085f\u1680g\u2000h\u202fi\u205fj", "\ufffd replacement \ufffe noncharacter \ue000 private", "漢字かな交じり文 한글 漢a字b",
    "\u4e00\u9fff \u3400 \U00020000 \U0002a6d6 \U0002b740 \U0002b920 \uf900 \U0002f800 \U0002b820", "¡hola! ¿qué? «x» ‹y› „z“ ‚w‘ 「k」 〔l〕 ⸢m⸣ ‿ ⁀ ﹏",
    "$+<=>^`|~ £€¥ ©®™ §¶ ·•… ‰′″", "a´b a¨b a¸b ˜ ˚ ˉ", "Ạ́ ậ ồ \u1e69 s\u0323\u0307 \u0344 \u0e33 \u0f43", "१२३ ๑๒๓ Ⅷ ⅷ ⓐ ½", "ﬁﬂ ﬀ Ŀ ŉ",
    "x" * 100, "x" * 101, "y" * 9 + "z", "é" * 11, "é" * 10, "ẞ ẟ ſ K Å Ω ℵ", "🏽‍ 👍🏿 ❤️ ☎︎", "naïveté über-cool façade's résumé", "a b  c\n\n d",
    "the of and to in is for what are",
]


def texts_of(tokenizer):
    ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]
    return {"ids": ids, "decoded": [tokenizer.decode(i, skip_special_tokens=True) for i in ids]}


def difference(cases, base):
    return {k: [a if a != b else None for a, b in zip(v, base[k])] for k, v in cases.items()}


def changed(file, change):
    file = json.loads(json.dumps(file))
    for key, value in change.items():
        file[key] = file[key] | value if key == "model" else value
    return file


def small():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Characters as they are and as every normalizer leaves them are in the vocabulary, but for some scripts.
    corpus = [t.replace("\U0001f9d1", "") for t in TEXTS]
    lower = normalizers.BertNormalizer(lowercase=True)
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False, min_frequency=1, limit_alphabet=420)
    tokenizer.train_from_iterator(corpus * 2 + [lower.normalize_str(t) for t in corpus] * 3, trainer)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda kv: (kv[1] >= len(special), kv[1] if kv[1] < len(special) else kv[0]))
    vocab = {token: i for i, (token, _) in enumerate(vocab)}
    file = json.loads(tokenizer.to_str())
    file["model"]["vocab"] = vocab
    file["normalizer"] = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    file["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])])
    file = json.loads(tokenizer.to_str())
    cases = texts_of(tokenizer)
    known = sum(1 not in ids for ids in cases["ids"])
    assert known > len(TEXTS) // 2, known
    bert = lambda **fields: {"normalizer": file["normalizer"] | fields}
    changes = [
        bert(lowercase=False), bert(lowercase=False, strip_accents=True), bert(strip_accents=False), bert(clean_text=False),
        bert(handle_chinese_chars=False), {"model": {"max_input_chars_per_word": 10}}, {"normalizer": None},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "BertPreTokenizer"}]}},
        {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}},
        {"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}},
    ]
    variants = [{"change": c, "cases": difference(texts_of(Tokenizer.from_str(json.dumps(changed(file, c)))), cases)} for c in changes]
    write("wordpiece", {"texts": TEXTS, "tokenizer": file, "cases": cases, "whole": tokenizer.encode("lung").ids, "variants": variants})


def minilm(folder):
    tokenizer = Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer_txt = tokenizers.BertWordPieceTokenizer(str(pathlib.Path(folder) / "vocab.txt"))
    ids = texts_of(tokenizer)["ids"]
    assert ids == [tokenizer_txt.encode(t, add_special_tokens=False).ids for t in TEXTS]
    write("wordpiece_minilm", ids)


def write(name, value):
    (OUT / f"{name}.json").write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")))


small()
if len(sys.argv) > 1:
    minilm(sys.argv[1])
