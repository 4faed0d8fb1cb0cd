// Optimizers, cross-entropy, norms, masks and conversions. Every kernel that their launchers take.
#include "launches.hpp"
#include "peft/cuda/kernels/adamw_8bit.cuh"
#include "peft/cuda/kernels/convert.cuh"
#include "peft/cuda/kernels/cross_entropy.cuh"
#include "peft/cuda/kernels/dropout.cuh"
#include "peft/cuda/kernels/reduce.cuh"

namespace {

using namespace peft;
using namespace peft::cuda::kernels;
using peft_proof::address;

constexpr Index kElements = Index{1} << 24;

template <class T>
void rows(const char* label) {
  AdamWArgs<T> adamw{};
  adamw.tensor = {address<float>(), address<float>(), address<float>(), address<float>(), address<T>(), kElements, 0};
  PROVE(label, adamw_step(adamw, nullptr));
  AdamW8bitArgs<T> adamw_8bit{};
  adamw_8bit.tensor = {address<float>(), address<float>(), address<std::uint8_t>(), address<std::uint8_t>(), address<float>(),
                       address<float>(), address<T>(), kElements, 0};
  adamw_8bit.tables = {address<float>(), address<std::uint32_t>(), address<float>(), address<std::uint32_t>()};
  PROVE(label, adamw_8bit_step(adamw_8bit, nullptr));
  for (const Index vocabulary : {Index{4096}, Index{128256}}) {
    CrossEntropyArgs<T> loss{};
    loss.logits = address<T>();
    loss.labels = address<std::int32_t>();
    loss.losses = address<float>();
    loss.rows = 256;
    loss.ld = loss.vocabulary = vocabulary;
    loss.want_grad = true;
    PROVE(label, cross_entropy_chunk(loss, nullptr));
  }
}

template <class To, class From>
void conversion() {
  for (const std::size_t offset : {std::size_t{0}, sizeof(From)}) {
    const ConvertArgs<To, From> args{address<From>(offset), 4096, address<To>(), 4096, 16, 4096};
    PROVE("conversion", convert(args, nullptr));
  }
}

}  // namespace

void launches() {
  rows<f16>("rows f16");
  rows<bf16>("rows bf16");
  rows<float>("rows f32");
  PROVE("loss", cross_entropy_total({address<float>(), address<std::int32_t>(), nullptr, 256, address<CrossEntropyTotals>()}, nullptr));
  conversion<f16, float>();
  conversion<bf16, float>();
  conversion<float, f16>();
  conversion<float, bf16>();
  conversion<float, float>();
  DropoutArgs dropout{};
  dropout.bits = address<std::uint8_t>();
  dropout.rows = 256;
  dropout.cols = 4096;
  dropout.stride_bytes = 512;
  dropout.p = 0.1f;
  PROVE("dropout", dropout_mask(dropout, nullptr));
  SquaredNormArgs norm{};
  norm.buffer = {address<float>(), kElements};
  norm.workspace = address<double>();
  norm.result = address<float>();
  norm.max_norm = 1.0f;
  norm.chunk_count = static_cast<int>(tensor_chunks(kElements));
  PROVE("norm", squared_norm(norm, nullptr));
}
