#!/usr/bin/env bash
# Fine-tunes a real language model on a file of questions and answers, on this machine's processor, and shows what it
# knew before and what it knows after. Installs what is missing where it may, builds, and fetches the model.
#
#   bash examples/quickstart.sh                                    SmolLM2-135M-Instruct on examples/data
#   bash examples/quickstart.sh --data FILE.jsonl [--val FILE.jsonl] [--test FILE.jsonl] [--model FILE.gguf] [--out DIR]
#                               [-- options of "peft train", e.g. --epochs 5 --lr 1e-3 --template alpaca]
#
# Without --test (and --val), every tenth record of the data is held out for it.
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/.."
# shellcheck source=../cmake/setup.sh
. cmake/setup.sh

absolute() { case "$1" in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
model="" data="" val="" test="" out=""
while [ $# -gt 0 ]; do
  case "$1" in
    --model | --data | --val | --test | --out)
      [ $# -ge 2 ] || { echo "quickstart: $1 needs a path" >&2; exit 2; }
      printf -v "${1#--}" '%s' "$(absolute "$2")"
      shift 2
      ;;
    --) shift; break ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "quickstart: unknown option $1; see bash examples/quickstart.sh --help" >&2; exit 2 ;;
  esac
done
for file in "$model" "$data" "$val" "$test"; do
  [ -z "$file" ] || [ -f "$file" ] || { echo "quickstart: there is no file $file" >&2; exit 2; }
done
template=chatml  # what follows -- is for train; its template is the questions' as well
previous=""
for word in "$@"; do
  [ "$previous" = --template ] && template="$word"
  previous="$word"
done
out="${out:-$PWD/build/quickstart}"

# shellcheck disable=SC2086
peft_setup $peft_base_packages
[ -n "$model" ] || model="$(peft_model)"
echo "Building (some minutes the first time) ..." >&2
cmake --preset release >/dev/null
mkdir -p build
if ! cmake --build --preset release --target peft_program >build/quickstart-build.log 2>&1; then
  cat build/quickstart-build.log >&2
  echo "quickstart: the program could not be built" >&2
  exit 1
fi
peft=build/release/bin/peft
SECONDS=0

mkdir -p "$out"
if [ -z "$data" ]; then
  data=examples/data/support-train.jsonl val=examples/data/support-val.jsonl test=examples/data/support-test.jsonl
else
  # hold_out NAME NUMBER: takes every tenth record away from the training file
  hold_out() {
    awk 'NF' "$data" | awk -v k="$2" 'NR % 10 == k' >"$out/$1.jsonl"
    if [ ! -s "$out/$1.jsonl" ]; then
      echo "quickstart: too few records to hold some out; give --val and --test" >&2
      exit 2
    fi
    awk 'NF' "$data" | awk -v k="$2" 'NR % 10 != k' >"$out/train.part"
    mv "$out/train.part" "$out/train.jsonl"
    data="$out/train.jsonl"
  }
  if [ -z "$test" ]; then hold_out test 5 && test="$out/test.jsonl"; fi
  if [ -z "$val" ]; then hold_out val 7 && val="$out/val.jsonl"; fi
fi

measure() {  # measure NAME [options]
  local name="$1"
  shift
  "$peft" eval --model "$model" --data "$test" --template "$template" --predictions "$out/$name.jsonl" --show 3 --max-tokens 96 "$@" \
    >"$out/$name.txt"
  sed -n '/^question/,/^$/p' "$out/$name.txt"
}

echo
echo "== Before: what $(basename "$model") answers to questions of $(basename "$test")"
measure before
echo "== Training a LoRA on $(basename "$data")"
rm -rf "$out/adapter"
"$peft" train --model "$model" --data "$data" --val "$val" --out "$out/adapter" --method lora --template "$template" \
  --r 16 --lora-alpha 32 --lora-dropout 0.05 --target-modules all-linear --lr 2e-3 --batch 8 --accumulate 1 --epochs 3 "$@"
echo
echo "== After: the same questions, unseen in training"
measure after --adapter "$out/adapter"
echo "== Unseen questions, before and after"
for name in before after; do grep -v -e '^question' -e '^answer' -e '^expected' "$out/$name.txt" | grep -E '^(loss|BLEU|ROUGE|facts)' | sed "s/^/$name  /"; done
echo
echo "adapter   $out/adapter  ($(du -h "$out/adapter/adapter_model.safetensors" | cut -f1) in adapter_model.safetensors; Python's peft loads it)"
echo "curve     $out/adapter/loss.svg"
echo "answers   $out/before.jsonl, $out/after.jsonl"
echo "ask it    $peft generate --model $model --adapter $out/adapter --prompt '...'"
echo "took      $((SECONDS / 60)) min $((SECONDS % 60)) s after the build"
