"""torch + transformers + peft: the job of tests/medquad.sh with Hugging Face's Trainer.

    medquad_job.py MODEL.gguf TRAIN.jsonl VAL.jsonl [f32|nf4 [METHOD RATE [SEED [THREADS]]]]     prints one line of JSON

LoRA on q and v, r = 8, alpha = 32, dropout 0.05, or another of job_methods.py; 160 records, one epoch, 4 × 4 records a step,
at most 256 tokens, padded to the longest of four; AdamW, 3e-4 or RATE falling linearly, norm clipped to 1; weights in float,
or the layers' linears in bitsandbytes' NF4, quantised twice. tok/s: tokens without padding
over the seconds of Trainer.train(). The validation loss is the mean over the label tokens of 40 records.
"""

import json
import pathlib
import sys
import tempfile
import time

import torch
import job_methods
from common import quantize_linears, report

RECORDS, VALIDATION_RECORDS, LENGTH = 160, 40, 256


def read(path, count, tokenizer):
    """chatml: the prompt is read, the completion learned; both tokenised by themselves, joined, cut on the right."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            text = record["instruction"] + ("\n" + record["input"] if record.get("input") else "")
            ids = tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
            completion = tokenizer(record["output"] + "<|im_end|>\n", add_special_tokens=False)["input_ids"]
            labels = ([-100] * len(ids) + completion)[:LENGTH]
            ids = (ids + completion)[:LENGTH]
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
            if len(rows) == count:
                break
    return rows


def loss_of(model, rows):
    """Mean over all label tokens."""
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            labels = torch.tensor([row["labels"]])
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
            logits = logits[:, -labels.shape[1]:]  # without the virtual tokens before the text
            total += torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100,
                                                       reduction="sum").item()
            count += int((labels[0, 1:] != -100).sum())
    return total / count


def load(gguf):
    """The model of a GGUF in float, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = pathlib.Path(gguf)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = loaded.config.__class__(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    config.use_cache = False
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # transformers 4 finds none in a GGUF
    # Trainer refuses a model that came from a GGUF, although its weights are float: the same weights in a fresh model.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    del loaded
    return tokenizer, model


def main(gguf, train, validation, storage="f32", method="lora", rate="3e-4", seed="0", threads="2"):
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    tokenizer, model = load(gguf)
    if storage != "f32":
        quantize_linears(model, storage)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        model, callbacks = job_methods.add(model, method, RECORDS // 16, folder)
    rows = read(train, RECORDS, tokenizer)
    validation_rows = read(validation, VALIDATION_RECORDS, tokenizer)
    before = loss_of(model, validation_rows)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, per_device_train_batch_size=4, gradient_accumulation_steps=4,
                                      num_train_epochs=1, learning_rate=float(rate), lr_scheduler_type="linear", weight_decay=0.0,
                                      max_grad_norm=1.0, seed=int(seed), use_cpu=True, save_strategy="no", logging_strategy="no",
                                      report_to="none", disable_tqdm=True, remove_unused_columns=False)
        trainer = Trainer(model, arguments, train_dataset=rows, callbacks=callbacks,
                          data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100))
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    tokens = sum(len(row["input_ids"]) for row in rows)
    report(**{"tok/s": tokens / seconds, "tokens": tokens, "train_s": seconds, "val_loss_before": before,
              "val_loss_after": loss_of(model, validation_rows)})


if __name__ == "__main__":
    main(*sys.argv[1:])
