"""torch + transformers + peft, or adapters: a BERT learns to sort texts into classes, as Hugging Face's Trainer does it.

    routing.py MODEL_FOLDER TRAIN.jsonl TEST.jsonl METHOD [SEED [EPOCHS]]     prints one line of JSON

METHOD: lora (r = 8, alpha = 16 on query and value), prompt, prefix (16 virtual tokens), full; houlsby in the environment of
adapters. A new head learns with it: one linear layer behind the model's pooler, which stays as it is unless all is trained. In
the environment of adapters houlsby_own_head and full_own_head have AdapterHub's head instead, two linear layers that read the
first row, both new. 5 epochs (EPOCHS) in batches of 16, padded to the longest, texts cut at 128 tokens; AdamW, the
rate falling linearly, norm clipped to 1; weights in float; dropout as the model's config.json has it. tok/s: tokens without
padding over the seconds of the training loop.
"""

import json
import sys
import time

import torch
from common import report

RATES = {"lora": 1e-3, "houlsby": 1e-3, "prompt": 1e-2, "prefix": 1e-2, "full": 5e-5}
LENGTH, VIRTUAL = 128, 16
OWN_HEAD = "_own_head"


def with_own_head(folder, method, classes):
    """A model class of AdapterHub with its classification head: dropout, linear, tanh, dropout, linear."""
    import adapters

    model = adapters.AutoAdapterModel.from_pretrained(folder)
    if method == "houlsby":
        model.add_adapter("task", config="double_seq_bn")
    model.add_classification_head("task", num_labels=classes)
    if method == "houlsby":
        model.train_adapter("task")
    return model


def with_method(model, method):
    if method == "houlsby":
        import adapters

        adapters.init(model)
        model.add_adapter("task", config="double_seq_bn")
        model.train_adapter("task")
    elif method != "full":
        import peft

        config = {"lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS"),
                  "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=VIRTUAL, task_type="SEQ_CLS"),
                  "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=VIRTUAL, task_type="SEQ_CLS")}[method]()
        model = peft.get_peft_model(model, config)
    return model


def main(folder, train, test, method, seed="0", epochs="5"):
    from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding,
                              get_linear_schedule_with_warmup)

    torch.set_num_threads(2)
    torch.manual_seed(int(seed))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    records = {path: [json.loads(line) for line in open(path, encoding="utf-8")] for path in (train, test)}
    labels = sorted({record["label"] for record in records[train]})

    def rows(path):
        return [{**tokenizer(record["text"], truncation=True, max_length=LENGTH), "labels": labels.index(record["label"])}
                for record in records[path]]

    training, held_out = rows(train), rows(test)
    own_head, method = method.endswith(OWN_HEAD), method.removesuffix(OWN_HEAD)
    if own_head:
        model = with_own_head(folder, method, len(labels))
    else:
        model = with_method(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels)), method)
    batches = torch.utils.data.DataLoader(training, batch_size=16, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATES[method], weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, int(epochs) * len(batches))
    model.train()
    start = time.perf_counter()
    for _ in range(int(epochs)):
        for batch in batches:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - start
    model.eval()
    hits = 0
    with torch.inference_mode():
        for row in held_out:
            logits = model(**{k: torch.tensor([v]) for k, v in row.items() if k != "labels"}).logits
            hits += int(logits[0].argmax()) == row["labels"]
    tokens = int(epochs) * sum(len(row["input_ids"]) for row in training)
    report(**{"tok/s": tokens / seconds, "train_s": seconds, "accuracy": hits / len(held_out)})


if __name__ == "__main__":
    main(*sys.argv[1:])
