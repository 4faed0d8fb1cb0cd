"""Goldens of the text metrics: sacreBLEU's corpus and sentence scores, rouge-score's per pair.

    python tests/golden/make_eval.py            (writes tests/golden/data/eval/)
"""

import json
import pathlib
import random
from importlib.metadata import version

import sacrebleu
from rouge_score import rouge_scorer

assert sacrebleu.__version__ == "2.6.0", sacrebleu.__version__
assert version("rouge_score") == "0.1.2", version("rouge_score")

OUT = pathlib.Path(__file__).parent / "data" / "eval"
TOKENIZERS = ["13a", "zh", "char", "none"]

PAIRS = [  # hypothesis, reference
    ("The valve opens at 8.5 bar.", "The valve opens at 8.5 bar."),
    ("The valve opens at 8.5 bar", "At 8.5 bar, the valve opens."),
    ("It costs $1,299.50 (plus 19% VAT)!", "It costs $1,299.50, plus 19 % VAT."),
    ("a", "a"),
    ("a b", "a b"),
    ("a b c", "a b d"),
    ("", "There is something to say."),
    ("Something was said.", ""),
    ("", ""),
    ("   \t\n ", "x"),
    ("completely different words here now", "nothing of this occurs over there"),
    ("the the the the the the the", "the cat is on the mat"),
    ("well-known 3-day tour, 2-for-1", "well - known 3 -day tour; 2-for-1"),
    ("He said: \"&quot;Tom &amp; Jerry&quot; is &lt;old&gt;\"", "He said: \"\"Tom & Jerry\" is <old>\""),
    ("line one\nline two", "line one line two"),
    ("hyphen-\nated words", "hyphenated words"),
    ("<skipped>kept text here", "kept text here"),
    ("...wait.. what?!.,", "... wait .. what ?! . ,"),
    ("1.2.3 and 4,5,6. and .5 or 5.", "1.2.3 and 4,5,6 . and .5 or 5 ."),
    ("naïve café déjà vu Straße", "naive café déjà vu Strasse"),
    ("İstanbul 300 K test", "istanbul 300 k test"),
    ("UPPER lower MiXeD", "upper LOWER mixed"),
    ("emoji 🙂 here 👍🏽 done", "emoji 🙂 here 👍 done"),
    ("先用蒸汽清洁喷嘴，再关闭阀门。", "先用蒸汽清洁喷嘴，然后关闭阀门。"),
    ("今天是2024年5月1日，温度是25.5度", "今天是2024年5月1日,温度为25.5度"),
    ("请按 E-17 键 three times", "请按 E-17 键三次 times"),
    ("機械を停止してください。ボタンを押します", "機械を止めてください。ボタンを押す"),
    ("전원을 끄고 밸브를 닫으세요", "전원을 끄고 나서 밸브를 닫으세요"),
    ("“quoted” – dash — long… €5 • bullet → arrow", "\"quoted\" - dash - long... €5 * bullet -> arrow"),
    ("𠀀𠀁 rare 中", "𠀀𠀂 rare 中"),
    ("ＡＢＣ full width　space", "ABC full width space"),
    ("no break\u00a0space and thin\u2009one, line\u2028sep", "no break space and thin one, line sep"),
    ("tab\tand\x1cseparator\x85next", "tab and separator next"),
    ("- leading dash\n* star\n1. one\n2. two", "- leading dash\n* star\n1. one\n2. two"),
    ("price:5-6 or 5 - 6, 7-", "price: 5-6 or 5 -6, 7 -"),
    ("don't can't it's o'clock's", "don't cannot it is o'clock"),
    ("email me@example.org or http://example.org/a?b=c&d=e", "email me@example.org or http://example.org/a?b=c"),
    ("A_B {x} [y] ~z~ `c` ^d^ |e| \\f\\", "A_B {x} [y] ~z~ `c` ^d^ |e| \\f\\"),
]


def word_salad():
    draw = random.Random(4)
    words = "valve bar pump E-17 8.5 , . : open close the a steam nozzle, twice 19 days 阀门 関 🙂".split()
    result = []
    for _ in range(30):
        reference = [draw.choice(words) for _ in range(draw.randint(1, 40))]
        hypothesis = [draw.choice(words) if draw.random() < 0.3 else w for w in reference if draw.random() < 0.9]
        result.append((" ".join(hypothesis), " ".join(reference)))
    return result


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    pairs = PAIRS + word_salad()
    english = pairs[:23]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    groups = {"all": pairs, "english": english, "salad": pairs[len(PAIRS):], "first": pairs[:1], "nothing": [pairs[10]],
              "empty": [pairs[8]], "short": pairs[3:6]}
    corpus = {}
    for name, group in groups.items():
        for tokenizer in TOKENIZERS:
            score = sacrebleu.corpus_bleu([h for h, _ in group], [[r for _, r in group]], tokenize=tokenizer)
            corpus[f"{name}/{tokenizer}"] = {
                "pairs": [pairs.index(pair) for pair in group], "score": score.score, "precisions": score.precisions,
                "counts": score.counts, "totals": score.totals, "bp": score.bp, "sys_len": score.sys_len,
                "ref_len": score.ref_len,
            }
    records = []
    for hypothesis, reference in pairs:
        rouge = scorer.score(reference, hypothesis)
        records.append({
            "hypothesis": hypothesis, "reference": reference,
            "bleu": {t: sacrebleu.sentence_bleu(hypothesis, [reference], tokenize=t).score for t in TOKENIZERS},
            "rouge": {kind: [s.precision, s.recall, s.fmeasure] for kind, s in rouge.items()},
        })
    text = json.dumps({"records": records, "corpus": corpus}, ensure_ascii=False, indent=0)
    (OUT / "metrics.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
