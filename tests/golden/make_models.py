"""Goldens of the model types that the Llama host runs: tiny random models as Hugging Face saves them, some also as GGUFs in
llama.cpp's conventions; transformers' logits and losses, peft's gradients.

    python tests/golden/make_models.py        (writes tests/golden/data/models/; wants make_tokenizer.py's output)
"""

import json
import pathlib
import shutil

import gguf
import numpy as np
import peft
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "data"
OUT = HERE / "models"
TOKENS = 24

shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)


def tokenizer(name):
    return json.loads((HERE / "tokenizer" / f"{name}.json").read_text())["tokenizer"]


def make(name, config, plain_config=None, in_file=None, shards=None):
    """A random model, saved; its logits and loss. `plain_config`: what must give other numbers, or nothing is tested.
    `in_file`: members of config.json as older programs wrote them (None: removed)."""
    torch.manual_seed(sum(map(ord, name)))
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key:
                p.copy_(1 + 0.1 * torch.randn_like(p))
            elif "q_proj" in key or "k_proj" in key:
                p.copy_(0.5 * torch.randn_like(p))
            else:
                p.copy_(0.2 * torch.randn_like(p))
            p.copy_(p.bfloat16().float())
    folder = OUT / name
    model.bfloat16().save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if in_file is not None:
        path = folder / "config.json"
        file = json.loads(path.read_text()) | in_file
        path.write_text(json.dumps({k: v for k, v in file.items() if v is not None}, indent=2))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(0, config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
        if plain_config is not None:
            plain = transformers.AutoModelForCausalLM.from_config(plain_config, attn_implementation="eager").float()
            plain.load_state_dict(model.state_dict())
            difference = (plain(input_ids=ids[None]).logits[0] - logits).norm() / logits.norm()
            assert difference > 3e-2, (name, difference)
    columns = list(range(0, config.vocab_size, max(1, config.vocab_size // 50)))
    save_file({"logits": logits[:, columns].contiguous()}, folder / "golden.safetensors")
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
    (folder / "golden.json").write_text(json.dumps({"ids": ids.tolist(), "columns": columns, "loss": float(loss)}))
    return model, ids


def gradients(name, model, ids):
    """LoRA on every linear: loss and the gradients of all factors."""
    lora = peft.LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", target_modules="all-linear")
    model = peft.get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(2)
    parameters = {k.replace("base_model.model.", "").replace(".default", ""): p
                  for k, p in model.named_parameters() if "lora_" in k}
    with torch.no_grad():
        for p in parameters.values():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    logits = model(input_ids=ids[None]).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
    loss.backward()
    tensors = {"adapter." + k: p.detach() for k, p in parameters.items()} | {"grad." + k: p.grad for k, p in parameters.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / name / "lora.safetensors", metadata={"loss": repr(loss.item())})


def full_gradients(name, model, ids):
    """Full fine-tuning: the gradients of all parameters; of a tied head's weight and the embedding together."""
    model.zero_grad()
    logits = model(input_ids=ids[None]).logits[0]
    torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()
    save_file({k: p.grad.clone() for k, p in model.named_parameters()}, OUT / name / "full.safetensors")
    model.zero_grad()


def to_gguf(name, model, tokens=None, rope_freqs=None):
    """The model in llama.cpp's conventions: BF16 weights, F32 norms, q and k of a llama permuted to neighbouring pairs."""
    c = model.config
    arch = {"mistral": "llama"}.get(c.model_type, c.model_type)
    writer = gguf.GGUFWriter(OUT / name / "model.gguf.bin", arch)
    writer.add_name(name)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if tokens is not None:
        tokens(writer, c.vocab_size)

    def permuted(w):
        heads = w.shape[0] // head_dim
        return w.reshape(heads, 2, head_dim // 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)

    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    for key, w in model.state_dict().items():
        if key == "lm_head.weight" and c.tie_word_embeddings:
            continue
        stem, kind = key.rsplit(".", 1)
        if stem in top:
            target = top[stem]
        else:
            _, _, layer, rest = stem.split(".", 3)
            target = f"blk.{layer}.{names[rest]}"
        if arch == "llama" and ("q_proj" in key or "k_proj" in key):
            w = permuted(w)
        if w.ndim == 1:
            writer.add_tensor(f"{target}.{kind}", w.float().numpy())
        else:
            data = w.bfloat16().contiguous().view(torch.int16).numpy().view(np.uint8).reshape(w.shape[0], -1)
            writer.add_tensor(f"{target}.{kind}", data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level_tokens(name, pre, bos=None):
    def add(writer, size):
        file = tokenizer(name)
        added = {t["id"]: t for t in file["added_tokens"]}
        by_id = {i: t for t, i in file["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(size)])
        writer.add_token_types([(3 if added[i]["special"] else 4) if i in added else 1 if i in by_id else 5 for i in range(size)])
        writer.add_token_merges([" ".join(m) for m in file["model"]["merges"]])
        writer.add_eos_token_id(1)
        if bos is not None:
            writer.add_bos_token_id(bos)
        writer.add_add_bos_token(bos is not None)
    return add


def sentencepiece_tokens(writer, size):
    model = json.loads((HERE / "tokenizer" / "sentencepiece_model.json").read_text())
    assert len(model["pieces"]) == size
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(model["pieces"])
    writer.add_token_scores(model["scores"])
    writer.add_token_types(model["types"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)


def with_tokenizer(name, tokenizer_name, special):
    """The folder's tokenizer files; tokenizer.json itself is make_tokenizer.py's."""
    (OUT / name / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | special))
    (OUT / name / "generation_config.json").write_text(json.dumps({"eos_token_id": [1]}))
    (OUT / name / "tokenizer_name").write_text(tokenizer_name)


sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, rms_norm_eps=1e-5)
Llama, Mistral = transformers.LlamaConfig, transformers.MistralConfig
rope = lambda **parameters: {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"} | parameters}
plain = Llama(vocab_size=64, **sizes, head_dim=8, **rope(), tie_word_embeddings=True)
untied = Llama(vocab_size=64, **sizes, head_dim=8, **rope())

# Llama 2: no grouped heads, SentencePiece.
model, _ = make("llama2", Llama(vocab_size=600, **sizes | {"num_key_value_heads": 4}, bos_token_id=1, eos_token_id=2,
                               tie_word_embeddings=True))
to_gguf("llama2", model, sentencepiece_tokens)
with_tokenizer("llama2", "sentencepiece", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True})

# Llama 3: frequencies of wavelengths below 16 stay, those above 64 are divided by 8. In shards.
llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
config = Llama(vocab_size=404, **sizes, head_dim=8, **rope(**llama3), tie_word_embeddings=True)
model, _ = make("llama3", config, Llama(vocab_size=404, **sizes, head_dim=8, **rope(), tie_word_embeddings=True), shards="12KB")
frequencies = model.model.rotary_emb.inv_freq.double().numpy()
own = 1.0 / 100.0 ** (np.arange(0, 8, 2) / 8)
to_gguf("llama3", model, byte_level_tokens("llama-bpe", "llama-bpe", 2), own / frequencies)
with_tokenizer("llama3", "llama-bpe", {"bos_token": "<s>", "eos_token": "<|im_end|>"})

# Linear scaling in the spelling of transformers 4.
make("linear", Llama(vocab_size=64, **sizes, head_dim=8, **rope(rope_type="linear", factor=4.0), tie_word_embeddings=True), plain,
     in_file={"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 4.0}})

yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
config = Llama(vocab_size=64, **sizes, head_dim=8, **rope(**yarn))
model, _ = make("yarn", config, untied)
to_gguf("yarn", model, lambda writer, size: writer.add_tokenizer_model("no_vocab"))
make("yarn_factor", Llama(vocab_size=64, **sizes, head_dim=8, **rope(**yarn, attention_factor=0.8, beta_fast=3.0, beta_slow=0.5)), config)
make("yarn_mscale", Llama(vocab_size=64, **sizes, head_dim=8, **rope(**yarn, mscale=0.7, mscale_all_dim=3.0, truncate=False, beta_fast=2.0, beta_slow=0.3)), config)

make("mistral", Mistral(vocab_size=64, **sizes, head_dim=4, **rope(), sliding_window=TOKENS, tie_word_embeddings=False))

# DeepSeek LLM is a llama; biases everywhere that its class can have them.
model, ids = make("deepseek", Llama(vocab_size=64, **sizes, **rope(), attention_bias=True, mlp_bias=True))
full_gradients("deepseek", model, ids)

model, ids = make("qwen2", transformers.Qwen2Config(vocab_size=404, **sizes, **rope(), tie_word_embeddings=True))
to_gguf("qwen2", model, byte_level_tokens("qwen2", "qwen2"))
with_tokenizer("qwen2", "qwen2", {"eos_token": "<|im_end|>", "bos_token": None, "add_bos_token": False})
gradients("qwen2", model, ids)

model, ids = make("qwen3", transformers.Qwen3Config(vocab_size=404, **sizes, head_dim=8, **rope(), tie_word_embeddings=True))
to_gguf("qwen3", model, byte_level_tokens("qwen2", "qwen2"))
with_tokenizer("qwen3", "qwen2", {"eos_token": "<|im_end|>"})
full_gradients("qwen3", model, ids)
gradients("qwen3", model, ids)

for path in OUT.rglob("*"):
    path.chmod(0o755 if path.is_dir() else 0o644)
