"""Writes the seeds of the fuzz targets: python3 tests/fuzz/make_corpus.py. Standard library only; same bytes each time."""
import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent / "corpus"


def put(target, name, content):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def safetensors(header, data=b"", pad=True):
    text = json.dumps(header, separators=(",", ":")).encode() if not isinstance(header, bytes) else header
    if pad:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def make_safetensors():
    floats = struct.pack("<6f", 1, -2, 3.5, 0, float("inf"), 1e-40)
    put("safetensors", "empty", safetensors({}))
    put("safetensors", "one", safetensors({"w": entry("F32", [2, 3], 0, 24)}, floats))
    put("safetensors", "types", safetensors(
        {"__metadata__": {"format": "pt", "a": "\u00e9"}, "b": entry("BF16", [2], 0, 4), "d": entry("F64", [1], 4, 12),
         "h": entry("F16", [1, 1], 12, 14), "i": entry("I64", [1], 14, 22), "n": entry("F32", [0, 5], 22, 22),
         "s": entry("U8", [2], 22, 24)}, floats))
    put("safetensors", "gap", safetensors({"w": entry("F32", [1], 4, 8)}, floats[:8]))
    put("safetensors", "overlap", safetensors({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, floats[:12]))
    put("safetensors", "huge_shape", safetensors({"w": entry("F32", [1 << 62, 1 << 62], 0, 24)}, floats))
    put("safetensors", "huge_header", struct.pack("<Q", 1 << 63) + b"{}")
    put("safetensors", "twice", safetensors(b'{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
                                            b'"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', floats[:4]))


def make_train_state():
    def state(scalars, fingerprint, version="1"):
        metadata = {"peft.train_state.version": version, "peft.train_state.isa": "avx2",
                    "peft.train_state.fingerprint": json.dumps(fingerprint),
                    "peft.train_state.scalars": json.dumps(scalars)}
        return safetensors({"__metadata__": metadata, "exp_avg/layer.lora_A": entry("F32", [1, 2], 0, 8),
                            "parameters/layer.lora_A": entry("F64", [1, 2], 8, 24)}, bytes(24))
    put("train_state", "whole", state({"step": 3, "seed": 2**64 - 1, "best": 1.5, "done": False, "loss_scale": "0x1p+16"},
                                      [["r", "8"], ["data", "\u00fc"]]))
    put("train_state", "odd_scalars", state({"a": None, "b": [1], "c": -1, "d": 1e308}, [["x"]]))
    put("train_state", "version", state({}, [], "9"))
    put("train_state", "none", safetensors({"w": entry("F32", [1], 0, 4)}, bytes(4)))


def make_adapter_config():
    small = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    full = dict(small, auto_mapping=None, base_model_name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct", bias="none",
                fan_in_fan_out=False, inference_mode=True, init_lora_weights=True, layers_pattern=None,
                layers_to_transform=[0, 2], lora_dropout=0.05, modules_to_save=None, peft_version="0.21.2",
                rank_pattern={"q_proj": 4, "^model.layers.1.mlp": 2}, alpha_pattern={"v_proj": 32.5}, revision=None,
                task_type="CAUSAL_LM", use_dora=False, use_rslora=True)
    put("adapter_config", "small.json", json.dumps(small))
    put("adapter_config", "full.json", json.dumps(full, indent=2))
    put("adapter_config", "regex.json", json.dumps(dict(small, target_modules=r".*\.(q|v)_proj$", exclude_modules=["x"])))
    put("adapter_config", "all_linear.json", json.dumps(dict(small, target_modules="all-linear", init_lora_weights="gaussian")))
    put("adapter_config", "dora.json", json.dumps(dict(small, use_dora=True)))
    put("adapter_config", "extremes.json", json.dumps(dict(small, r=10**30, lora_alpha=-1e308, lora_dropout=2)))
    put("adapter_config", "slow_regex.json", json.dumps(dict(
        small, target_modules="(.+)+x|.*(?=_proj)_proj", exclude_modules="(a?|b?){200}", rank_pattern={"(.*.*)*x": 2},
        layers_to_transform=[1], layers_pattern=["(h|layers)", ".*.*.*"])))
    put("adapter_config", "deep.json", "[" * 200 + "]" * 200)


def make_instruction_jsonl():
    record = {"instruction": "Name it.", "input": "", "output": "It is \u00fc.", "facts": ["\u00fc"]}
    put("instruction_jsonl", "two.jsonl", json.dumps(record) + "\n" + json.dumps({"instruction": "a", "output": "b"}) + "\n")
    put("instruction_jsonl", "crlf.jsonl", "\ufeff" + json.dumps(record) + "\r\n\r\n" + json.dumps(record))
    put("instruction_jsonl", "types.jsonl", json.dumps(dict(record, output=3)) + "\n")
    put("instruction_jsonl", "facts.jsonl", json.dumps(dict(record, facts=[1, None])) + "\n")
    put("instruction_jsonl", "twice.jsonl", '{"instruction":"a","instruction":"b","output":"c"}\n')
    put("instruction_jsonl", "bytes.jsonl", b'{"instruction":"\xff\xfe","output":"\\ud800"}\n')
    put("instruction_jsonl", "large_number.jsonl", '{"instruction":"a","output":"b","more":-1e999}\n')
    put("instruction_jsonl", "deep.jsonl", '{"instruction":' + "[" * 300 + "]" * 300 + "}\n")


def printable():
    """GPT-2's characters of the 256 bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return [chr(b if b in visible else 256 + hidden.index(b)) for b in range(256)]


def make_tokenizer_json():
    tokens = printable()
    vocabulary = {t: i for i, t in enumerate([*tokens, "th", "the", "lo", "\u0120w"])}
    merges = ["t h", "th e", "l o", "\u0120 w"]
    added = [{"id": 260, "content": "<|im_end|>", "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}]
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
           "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": merges}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {"type": "NFC"},
             "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "post_processor": None,
             "decoder": level, "model": bpe}
    put("tokenizer_json", "byte_level.json", json.dumps(whole))
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}, "\u2581": 259, "H": 260,
              "e": 261, "l": 262, "o": 263, "He": 264, "ll": 265, "\u2581He": 266}
    sentencepiece = dict(whole, added_tokens=[], pre_tokenizer=None, normalizer={"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        decoder={"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        model=dict(bpe, unk_token="<unk>", fuse_unk=True, byte_fallback=True, vocab=pieces,
                   merges=[["H", "e"], ["l", "l"], ["\u2581", "He"]]))
    put("tokenizer_json", "sentencepiece.json", json.dumps(sentencepiece))
    put("tokenizer_json", "wordpiece.json", json.dumps(dict(whole, model={"type": "WordPiece", "vocab": {"a": 0}})))
    put("tokenizer_json", "regex.json", json.dumps(dict(whole, pre_tokenizer=dict(split, pattern={"Regex": "(a+)+$"}))))
    put("tokenizer_json", "few.json", json.dumps(dict(whole, model=dict(bpe, vocab={"a": 0, "b": 7}, merges=["a b"]))))


# The values of NF4's and of FP4's codes, times the block's absmax.
NF4 = [-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1]
FP4 = [sign * value / 192 for sign in (1, -1) for value in (0, 1, 128, 192, 64, 96, 32, 48)]


def make_bnb_4bit():
    def weight(kind, state, values, codes, absmax, nested=None, map_type="F32"):
        """Two blocks of 32 elements, [2, 32], unless the state says otherwise."""
        parts = {"": ("U8", [len(codes), 1], codes),
                 ".quant_map": (map_type, [len(values)], struct.pack(f"<{len(values)}f", *values)),
                 f".quant_state.bitsandbytes__{kind}": ("U8", [len(state)], state)}
        if nested is None:
            parts[".absmax"] = ("F32", [len(absmax)], struct.pack(f"<{len(absmax)}f", *absmax))
        else:
            parts[".absmax"] = ("U8", [len(absmax)], bytes(absmax))
            parts[".nested_absmax"] = ("F32", [len(nested)], struct.pack(f"<{len(nested)}f", *nested))
            parts[".nested_quant_map"] = ("F32", [256], struct.pack("<256f", *[i / 128 - 1 for i in range(256)]))
        header, data = {}, b""
        for suffix, (dtype, shape, content) in parts.items():
            header["w" + suffix] = entry(dtype, shape, len(data), len(data) + len(content))
            data += content
        return safetensors(header, data)

    def state(kind="nf4", **changes):
        whole = {"quant_type": kind, "blocksize": 32, "dtype": "float32", "shape": [2, 32]}
        return json.dumps({k: v for k, v in dict(whole, **changes).items() if v is not None}).encode()
    double = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    codes = bytes(range(32))
    put("bnb_4bit", "single", weight("nf4", state(), NF4, codes, [0.5, 2]))
    put("bnb_4bit", "double", weight("nf4", state(**double), NF4, codes, [3, 200], [0.25]))
    put("bnb_4bit", "fp4", weight("fp4", state("fp4", **double), FP4, codes, [3, 200], [0.25]))
    put("bnb_4bit", "tail", weight("nf4", state(shape=[3, 13]), NF4, codes[:20], [1, 1]))
    put("bnb_4bit", "shape_lies", weight("nf4", state(shape=[1 << 40, 1 << 40]), NF4, codes, [1, 1]))
    put("bnb_4bit", "block_is_odd", weight("nf4", state(blocksize=33), NF4, codes, [1, 1]))
    put("bnb_4bit", "no_nested_state", weight("nf4", state(**double), NF4, codes, [1, 1]))
    put("bnb_4bit", "not_finite", weight("nf4", state(), NF4, codes, [float("inf"), 1]))
    put("bnb_4bit", "huge_offset", weight("nf4", state(**dict(double, nested_offset=1e300)), NF4, codes, [3, 200], [0.25]))
    put("bnb_4bit", "other_map", weight("nf4", state(), [0] * 16, codes, [1, 1]))


U32, F32, BOOL, TEXT, ARRAY, U64, I32 = 4, 6, 7, 8, 9, 10, 5


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, content):
    if kind == TEXT:
        return text(content)
    if kind == ARRAY:
        element, items = content
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, item) for item in items)
    return struct.pack({U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q", I32: "<i"}[kind], content)


def gguf(metadata, tensors, version=3):
    """tensors: (name, sizes innermost first, type, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, content) in metadata.items():
        out += text(key) + struct.pack("<I", kind) + value(kind, content)
    data = b""
    for name, sizes, kind, content in tensors:
        out += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, len(data))
        data += content + bytes(-len(content) % 32)
    return out + bytes(-len(out) % 32) + data


def make_gguf():
    put("gguf", "empty", gguf({}, []))
    put("gguf", "types", gguf({"general.name": (TEXT, "x"), "a": (ARRAY, (F32, [1.0, 2.0])), "b": (BOOL, True),
                               "c": (ARRAY, (TEXT, ["x", "y"])), "d": (U64, 1 << 40)},
                              [("f32", [4], 0, bytes(16)), ("f16", [2, 2], 1, bytes(8)), ("q4_0", [32], 2, bytes(18)),
                               ("q4_1", [32, 1], 3, bytes(20)), ("q8_0", [64], 8, bytes(68)), ("bf16", [2], 30, bytes(4)),
                               ("q6_k", [256], 14, bytes(210))]))
    put("gguf", "nothing", gguf({}, [("wide", [(1 << 63) - 4, 0], 0, b""), ("tall", [0, (1 << 63) - 4], 0, b""),
                                     ("blocks", [(1 << 63) - 32, 0], 8, b"")]))
    tokens = [*printable(), "th", "<|im_start|>", "<|im_end|>"]
    metadata = {"general.architecture": (TEXT, "llama"), "llama.context_length": (U32, 64),
                "llama.embedding_length": (U32, 4), "llama.block_count": (U32, 1), "llama.feed_forward_length": (U32, 4),
                "llama.attention.head_count": (U32, 2), "llama.attention.head_count_kv": (U32, 1),
                "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5), "llama.rope.freq_base": (F32, 10000.0),
                "llama.rope.dimension_count": (U32, 2), "llama.vocab_size": (U32, len(tokens)),
                "tokenizer.ggml.model": (TEXT, "gpt2"), "tokenizer.ggml.pre": (TEXT, "smollm"),
                "tokenizer.ggml.tokens": (ARRAY, (TEXT, tokens)),
                "tokenizer.ggml.token_type": (ARRAY, (I32, [1] * 257 + [3, 3])),
                "tokenizer.ggml.merges": (ARRAY, (TEXT, ["t h"])), "tokenizer.ggml.eos_token_id": (U32, 258),
                "tokenizer.ggml.bos_token_id": (U32, 257)}

    def tensor(name, *sizes):
        count = 1
        for size in sizes:
            count *= size
        return name, list(sizes), 0, bytes(4 * count)
    layer = "blk.0."
    put("gguf", "llama", gguf(metadata, [
        tensor("token_embd.weight", 4, len(tokens)), tensor("output_norm.weight", 4), tensor(layer + "attn_norm.weight", 4),
        tensor(layer + "ffn_norm.weight", 4), tensor(layer + "attn_q.weight", 4, 4), tensor(layer + "attn_k.weight", 4, 2),
        tensor(layer + "attn_v.weight", 4, 2), tensor(layer + "attn_output.weight", 4, 4),
        tensor(layer + "ffn_gate.weight", 4, 4), tensor(layer + "ffn_up.weight", 4, 4), tensor(layer + "ffn_down.weight", 4, 4)]))
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], "\u2581", "H", "e", "He"]
    put("gguf", "sentencepiece", gguf({
        "tokenizer.ggml.model": (TEXT, "llama"), "tokenizer.ggml.tokens": (ARRAY, (TEXT, pieces)),
        "tokenizer.ggml.scores": (ARRAY, (F32, [-float(i) for i in range(len(pieces))])),
        "tokenizer.ggml.token_type": (ARRAY, (I32, [2, 3, 3] + [6] * 256 + [1] * 4)),
        "tokenizer.ggml.eos_token_id": (U32, 2), "tokenizer.ggml.add_bos_token": (BOOL, True)}, []))
    put("gguf", "version", gguf({}, [], 99))
    put("gguf", "many", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))
    put("gguf", "nested", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 64)


make_safetensors()
make_train_state()
make_bnb_4bit()
make_adapter_config()
make_instruction_jsonl()
make_tokenizer_json()
make_gguf()
