// One hash per area of the library whose bits are promised, to be compared across compilers and their flags. Every area
// runs with 1, 2 and 3 threads and must not notice. Inputs are made of integers, so that they are the same everywhere.
//   PEFT_FORCE_ISA=avx2 bits_probe  ->  "isa avx2", "gemm 0123456789abcdef", …; exit status 1 where a check fails
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "bits/bits_model.hpp"
#include "bits/bits_non_finite.hpp"
#include "bits/bits_support.hpp"
#include "peft/dense_linear.hpp"
#include "peft/kernels/adamw.hpp"
#include "peft/kernels/convert.hpp"
#include "peft/kernels/dropout.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/linear_cross_entropy.hpp"
#include "peft/lora.hpp"
#include "peft/nf4_linear.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/attention.hpp"
#include "peft/ops/cross_entropy.hpp"
#include "peft/ops/embedding.hpp"
#include "peft/ops/dropout.hpp"
#include "peft/ops/layer_norm.hpp"
#include "peft/ops/rms_norm.hpp"
#include "peft/ops/rope.hpp"
#include "peft/ops/swiglu.hpp"
#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"
#include "peft/train/schedule.hpp"
#include "peft/train/trainer.hpp"

namespace {

using namespace bits_test;

// -- numbers --------------------------------------------------------------------------------------------------------
void conversions(Hash& hash, ExecutorRef) {
  std::vector<std::uint16_t> half(65536), back(65536);
  for (std::size_t i = 0; i < half.size(); ++i) half[i] = static_cast<std::uint16_t>(i);
  std::vector<float> wide(65536);
  for (const DType type : {DType::kF16, DType::kBF16}) {
    // Not the NaNs: a processor keeps their payload, and what a compiler makes of a NaN is not promised.
    kernels::convert(65536, half.data(), type, wide.data(), DType::kF32);
    for (float& value : wide) value = is_finite(value) ? value : 1.0f;
    hash.add(wide.data(), wide.size());
    for (std::size_t i = 0; i < wide.size(); ++i) {
      wide[i] = std::bit_cast<float>(static_cast<std::uint32_t>(i) * 65521u % 0x7F800000u | (i % 2 != 0 ? 0x80000000u : 0u));
    }
    kernels::convert(65536, wide.data(), DType::kF32, back.data(), type);
    hash.add(back.data(), back.size());
    for (std::size_t i = 0; i < 997; ++i) {
      const float scalar = type == DType::kF16 ? static_cast<float>(f16(wide[i])) : static_cast<float>(bf16(wide[i]));
      hash.add(&scalar, 1);
    }
  }
}

void random_numbers(Hash& hash, ExecutorRef executor) {
  Philox random(7, 3);
  for (int i = 0; i < 500; ++i) {
    const float drawn[3] = {random.uniform(), random.uniform(-0.3f, 0.7f), random.normal()};
    const double fine = random.uniform_double();
    hash.add(drawn, 3);
    hash.add(&fine, 1);
  }
  const DropoutMask mask(DropoutKey{11, 5, 2, 64});
  Buffer<std::uint8_t> memory;
  for (const Index columns : {Index{1}, Index{77}, Index{1000}}) {
    const kernels::MaskBits bits = mask.bits(37, columns, 0.3f, memory, executor);
    hash.add(bits.bits, static_cast<std::size_t>(37 * bits.stride_bytes));
    hash.add(&bits.scale, 1);
  }
}

// -- products -------------------------------------------------------------------------------------------------------
/// C of a product with two low-rank terms, in every order of operands; 300 columns of K cross a block.
template <class W, class T>
void products(Hash& hash, ExecutorRef executor, bool transposed) {
  for (const Index m : {Index{3}, Index{29}}) {
    const Index n = 45, k = 300;
    const Matrix<T> a = numbers<T>(m, k, 1);
    const Matrix<W> w = transposed ? numbers<W>(n, k, 2) : numbers<W>(k, n, 2);
    const Matrix<float> s = numbers<float>(m, 11, 3), left = numbers<float>(5, n, 4), right = numbers<float>(n, 6, 5);
    const Matrix<float> bias = numbers<float>(1, n, 6);
    Buffer<std::uint8_t> memory;
    for (const bool masked : {false, true}) {
      for (const bool accumulate : {false, true}) {
        Matrix<T> c = numbers<T>(m, n, 7);
        const kernels::LowRankColumns terms[2] = {{s.data(), 11, 5, left.data(), n, false, 0.7f},
                                                  {s.data() + 5, 11, 6, right.data(), 6, true, -1.3f}};
        kernels::GemmProblem problem;
        problem.m = m;
        problem.n = n;
        problem.k = k;
        problem.a = {a.data(), k, dtype_of<T>(), false};
        problem.b.dense = {w.data(), w.cols(), dtype_of<W>(), transposed};
        problem.low_rank = terms;
        problem.low_rank_count = 2;
        if (masked) problem.low_rank_mask = DropoutMask(DropoutKey{3, 1, 4, 0}).bits(m, n, 0.25f, memory, executor);
        problem.bias = bias.data();
        problem.accumulate = accumulate;
        problem.c = c.data();
        problem.c_stride = n;
        problem.c_type = dtype_of<T>();
        kernels::gemm(problem, executor);
        hash.add(c);
      }
    }
  }
}

void gemm_products(Hash& hash, ExecutorRef executor) {
  for (const bool transposed : {false, true}) {
    products<float, float>(hash, executor, transposed);
    products<bf16, float>(hash, executor, transposed);
    products<f16, bf16>(hash, executor, transposed);
  }
}

/// Codes, scales and values in four bits; products of few rows and of many, over rows that are whole blocks and others.
template <FourBitCode kCode>
void four_bits_of(Hash& hash, ExecutorRef executor) {
  for (const Index in : {Index{192}, Index{75}}) {
    for (const bool twice : {false, true}) {
      const Matrix<float> w = numbers<float>(70, in, 31);
      const auto tensor = FourBitTensor<kCode>::quantize(w.view(), {.block_size = 64, .double_quant = twice}, executor);
      const FourBitStorage& s = tensor.storage();
      hash.add(s.codes.data, static_cast<std::size_t>(s.codes.size));
      hash.add(s.absmax.data, static_cast<std::size_t>(s.absmax.size));
      hash.add(s.nested_codes.data, static_cast<std::size_t>(s.nested_codes.size));
      hash.add(s.nested_map.data, static_cast<std::size_t>(s.nested_map.size));
      hash.add(s.nested_absmax.data, static_cast<std::size_t>(s.nested_absmax.size));
      hash.add(&s.nested_offset, 1);
      Matrix<float> back(70, in);
      tensor.dequantize(back.view(), executor);
      hash.add(back);
      const FourBitLinear<kCode> layer(tensor);
      for (const Index rows : {Index{1}, Index{6}, Index{21}}) {
        const Matrix<float> x = numbers<float>(rows, in, 32), dy = numbers<float>(rows, 70, 33);
        const Matrix<float> terms = numbers<float>(rows, 3, 34), b = numbers<float>(70, 3, 35);
        const LowRankTerm term{0, rows, terms.view(), b.view(), 0.3f};
        Matrix<float> y(rows, 70), dx(rows, in);
        layer.template forward_low_rank<float>(x.view(), std::span(&term, 1), y.view(), executor);
        layer.template backward_input<float>(dy.view(), dx.view(), Accumulate::kOverwrite, executor);
        hash.add(y);
        hash.add(dx);
      }
    }
  }
}
void four_bits(Hash& hash, ExecutorRef executor) {
  four_bits_of<FourBitCode::kNf4>(hash, executor);
  four_bits_of<FourBitCode::kFp4>(hash, executor);
}

// -- layers ---------------------------------------------------------------------------------------------------------
/// A host's layer in three members and a gradient, without panels.
struct PlainLinear {
  using value_type = float;
  Matrix<float> w;
  Index in_features() const { return w.cols(); }
  Index out_features() const { return w.rows(); }
  void forward(MatrixView<const float> x, MatrixView<float> y) const {
    for (Index i = 0; i < x.rows; ++i) {
      for (Index j = 0; j < y.cols; ++j) y(i, j) = x(i, j % x.cols);
    }
  }
  void backward_input(MatrixView<const float> dy, MatrixView<float> dx) const {
    for (Index i = 0; i < dx.rows; ++i) {
      for (Index j = 0; j < dx.cols; ++j) dx(i, j) = dy(i, j % dy.cols);
    }
  }
};

template <class T, class Base>
void lora_over(Hash& hash, ExecutorRef executor, const Base& base) {
  Lora<T> lora(base.in_features(), base.out_features(),
               LoraConfig{.r = 7, .lora_alpha = 11, .target_modules = {"x"}, .lora_dropout = 0.2f,
                          .init_lora_weights = false},
               5);
  for (const Index rows : {Index{2}, Index{70}}) {
    const Matrix<T> x = numbers<T>(rows, base.in_features(), 21), dy = numbers<T>(rows, base.out_features(), 22);
    Matrix<T> y(rows, base.out_features()), dx = numbers<T>(rows, base.in_features(), 23);
    typename Lora<T>::Saved saved;
    lora.forward(base, x.view(), y.view(), saved, DropoutKey{9, 2, 1, 5}, executor);
    hash.add(y);
    for (const Accumulate mode : {Accumulate::kOverwrite, Accumulate::kAdd}) {
      lora.backward(base, dy.view(), x.view(), saved, dx.view(), mode, executor);
      hash.add(dx);
    }
    lora.forward(base, x.view(), y.view(), executor);
    hash.add(y);
  }
  hash.add(lora.grad_a());
  hash.add(lora.grad_b());
}

void lora_methods(Hash& hash, ExecutorRef executor) {
  const DenseLinear<bf16> dense(numbers<bf16>(65, 130, 31));
  lora_over<float>(hash, executor, dense);
  lora_over<bf16>(hash, executor, dense);
  lora_over<float>(hash, executor, PlainLinear{numbers<float>(20, 33, 32)});
}

/// Rows that encoders make, and their gradients.
template <class Method>
void encoded(Hash& hash, ExecutorRef executor, Method method, Index width) {
  const DropoutKey dropout{5, 3, 2, 0};
  for (int pass = 0; pass < 2; ++pass) {
    if constexpr (requires { method.keys(0); }) {
      method.encode(executor);
      for (Index l = 0; l < method.layers(); ++l) {
        for (const MatrixView<float>& grad : {method.grad_keys(l), method.grad_values(l)}) {
          const Matrix<float> part = numbers<float>(grad.rows, grad.cols, 151 + static_cast<std::uint32_t>(l));
          for (Index i = 0; i < grad.rows; ++i) std::copy_n(part.row(i), grad.cols, grad.row(i));
        }
      }
    } else {
      method.encode(&dropout, executor);
      method.add_gradient(numbers<float>(method.num_virtual_tokens(), width, 152).view());
    }
    hash.add(method.prompt_embeddings().data, static_cast<std::size_t>(method.num_virtual_tokens() * width));
    method.backward(executor);
  }
  method.for_each_parameter([&](const ParameterInfo&, VectorView<float>, VectorView<float> grad) {
    hash.add(grad.data, static_cast<std::size_t>(grad.size));
  });
}

void virtual_tokens(Hash& hash, ExecutorRef executor) {
  PrefixTuningConfig prefix{.num_virtual_tokens = 7, .token_dim = 12, .num_layers = 3, .num_attention_heads = 2};
  prefix.prefix_projection = true;
  prefix.encoder_hidden_size = 19;
  encoded(hash, executor, PrefixCache<float>(prefix, 3), 72);
  PromptEncoderConfig encoder{.num_virtual_tokens = 6, .token_dim = 21};
  encoder.encoder_hidden_size = 17;
  encoded(hash, executor, PromptEmbedding<float>(encoder, 4), 21);
  encoder.encoder_reparameterization_type = PromptEncoderReparameterizationType::kLstm;
  encoder.encoder_dropout = 0.2f;
  encoded(hash, executor, PromptEmbedding<float>(encoder, 5), 21);
}

void merges(Hash& hash, ExecutorRef executor) {
  const Matrix<float> a = numbers<float>(5, 70, 41), b = numbers<float>(33, 5, 42);
  const MergeTerm term{a.view(), b.view(), 0.3f};
  DenseLinear<float> wide(numbers<float>(33, 70, 43));
  DenseLinear<bf16> narrow(numbers<bf16>(33, 70, 44));
  (void)wide.merge(std::span(&term, 1), executor);
  (void)narrow.merge(std::span(&term, 1), executor);
  for (Index i = 0; i < 33; ++i) {
    hash.add(wide.weight().row(i), 70);
    hash.add(narrow.weight().row(i), 70);
  }
  Matrix<float> grown = numbers<float>(33, 70, 45);
  DenseLinear<float> trained(std::move(grown));
  trained.backward_weight<float>(numbers<float>(40, 33, 46).view(), numbers<float>(40, 70, 47).view(), executor);
  hash.add(trained.weight_grad());
}

// -- ops ------------------------------------------------------------------------------------------------------------
template <class T>
void row_ops(Hash& hash, ExecutorRef executor) {
  const Index n = 53;
  const Matrix<T> x = numbers<T>(19, n, 51), dy = numbers<T>(19, n, 52);
  const Matrix<float> weight = numbers<float>(1, n, 53);
  Matrix<T> y(19, n), dx = numbers<T>(19, n, 54), other(19, n);
  Buffer<float> dweight = Buffer<float>::zeros(n);
  ops::rms_norm_forward<T>(x.view(), weight.flat(), 1e-5f, y.view(), executor);
  hash.add(y);
  ops::rms_norm_backward<T>(dy.view(), x.view(), weight.flat(), 1e-5f, Accumulate::kAdd, dx.view(), dweight.view(),
                            executor);
  hash.add(dx);
  hash.add(dweight.data(), static_cast<std::size_t>(n));
  const Matrix<float> bias = numbers<float>(1, n, 55);
  Buffer<float> dbias = Buffer<float>::zeros(n);
  ops::layer_norm_forward<T>(x.view(), weight.flat(), bias.flat(), 1e-5f, y.view(), executor);
  hash.add(y);
  ops::layer_norm_backward<T>(dy.view(), x.view(), weight.flat(), 1e-5f, Accumulate::kAdd, dx.view(), dweight.view(),
                              dbias.view(), executor);
  hash.add(dx);
  hash.add(dweight.data(), static_cast<std::size_t>(n));
  hash.add(dbias.data(), static_cast<std::size_t>(n));
  ops::swiglu_forward<T>(x.view(), dy.view(), y.view(), executor);
  hash.add(y);
  ops::swiglu_backward<T>(dx.view(), x.view(), dy.view(), y.view(), other.view(), executor);
  hash.add(y);
  hash.add(other);
  ops::add<T>(x.view(), y.view(), executor);
  hash.add(y);
  const std::int32_t ids[4] = {3, 0, 18, 3};
  Matrix<T> rows(4, n);
  Matrix<float> table_grad = Matrix<float>::zeros(19, n);
  ops::embedding_forward<T, T>({ids, 4}, x.view(), rows.view(), executor);
  ops::embedding_backward<T>({ids, 4}, rows.view(), table_grad.view(), executor);
  hash.add(rows);
  hash.add(table_grad);
}

template <class T>
void attention(Hash& hash, ExecutorRef executor) {
  const ops::AttentionShape shape{4, 2, 10, 0.31f, true};
  const Matrix<T> q = numbers<T>(43, 40, 61), keys = numbers<T>(48, 20, 62), values = numbers<T>(48, 20, 63);
  const Matrix<T> prefix = numbers<T>(3, 20, 64), d_out = numbers<T>(43, 40, 65);
  const std::vector<ops::AttentionSegment<T>> segments = {
      {0, 20, keys.view().row_range(0, 20), values.view().row_range(0, 20), {}, {}},
      {20, 23, keys.view().row_range(20, 28), values.view().row_range(20, 28), prefix.view(), prefix.view()}};
  Matrix<T> out(43, 40), dq(43, 40), dk(48, 20), dv(48, 20);
  Matrix<float> log_sum(43, 4), d_prefix_k = Matrix<float>::zeros(3, 20), d_prefix_v = Matrix<float>::zeros(3, 20);
  const std::vector<ops::AttentionGradSegment<T>> grads = {
      {dk.view().row_range(0, 20), dv.view().row_range(0, 20), {}, {}},
      {dk.view().row_range(20, 28), dv.view().row_range(20, 28), d_prefix_k.view(), d_prefix_v.view()}};
  const std::span<const ops::AttentionSegment<T>> all(segments);
  ops::attention_forward<T>(q.view(), all, shape, out.view(), log_sum.view(), executor);
  ops::attention_backward<T>(d_out.view(), q.view(), std::as_const(log_sum).view(), all, shape, dq.view(), grads, executor);
  for (const Matrix<T>* one : {&out, &dq, &dk, &dv}) hash.add(*one);
  ops::AttentionShape dropped = shape;
  dropped.dropout = 0.2f;
  dropped.dropout_key = {9, 2, 7, 30};
  ops::attention_forward<T>(q.view(), all, dropped, out.view(), log_sum.view(), executor);
  ops::attention_backward<T>(d_out.view(), q.view(), std::as_const(log_sum).view(), all, dropped, dq.view(), grads, executor);
  for (const Matrix<T>* one : {&out, &dq, &dk, &dv}) hash.add(*one);
  ops::dropout<T>(out.view(), 0.2f, dropped.dropout_key, executor);
  hash.add(out);
  for (const Matrix<float>* one : {&log_sum, &d_prefix_k, &d_prefix_v}) hash.add(*one);
}

void all_row_ops(Hash& hash, ExecutorRef executor) {
  row_ops<float>(hash, executor);
  row_ops<bf16>(hash, executor);
}
void all_attention(Hash& hash, ExecutorRef executor) {
  attention<float>(hash, executor);
  attention<f16>(hash, executor);
}

void rope(Hash& hash, ExecutorRef executor) {
  const ops::RopeTable<float> table(300, 22, 10000.0);
  hash.add(table.cosine(0), 300 * 11);
  hash.add(table.sine(0), 300 * 11);
  std::vector<std::int32_t> positions;
  for (int i = 0; i < 21; ++i) positions.push_back(i * 14);
  Matrix<float> x = numbers<float>(21, 66, 71);
  ops::rope_forward<float>(x.view(), {positions.data(), 21}, 22, table, executor);
  hash.add(x);
  ops::rope_backward<float>(x.view(), {positions.data(), 21}, 22, table, executor);
  hash.add(x);
}

void cross_entropy(Hash& hash, ExecutorRef executor) {
  std::vector<std::int32_t> targets;
  for (int i = 0; i < 30; ++i) targets.push_back(i % 7 == 3 ? -1 : i * 37 % 1100);
  const VectorView<const std::int32_t> labels(targets.data(), 30);
  Matrix<float> logits = numbers<float>(30, 1100, 81, 12.0f);
  std::vector<double> losses(30);
  std::vector<std::uint8_t> correct(30);
  ops::cross_entropy<float>(logits.view(), labels, 0.37f, true, {losses.data(), 30}, {correct.data(), 30}, executor);
  hash.add(logits);
  hash.add(losses.data(), losses.size());
  hash.add(correct.data(), correct.size());
  const DenseLinear<bf16> head(numbers<bf16>(1100, 64, 82));
  const Matrix<float> hidden = numbers<float>(30, 64, 83);
  Matrix<float> d_hidden(30, 64);
  LinearCrossEntropy<float> loss;
  LossSum sum;
  loss.forward_backward(head, hidden.view(), labels, 0.41, d_hidden.view(), sum, executor);
  hash.add(d_hidden);
  hash.add(&sum.loss, 1);
  hash.add(&sum.correct, 1);
}

// -- training -------------------------------------------------------------------------------------------------------
void optimizer(Hash& hash, ExecutorRef executor) {
  Matrix<float> p = numbers<float>(1, 20011, 91), m = Matrix<float>::zeros(1, 20011), v = Matrix<float>::zeros(1, 20011);
  const Matrix<float> grad = numbers<float>(1, 20011, 92);
  for (int step = 1; step <= 3; ++step) {
    kernels::AdamWStep update;
    update.lr = 1e-3 / step;
    update.weight_decay = 0.01;
    update.bias_correction1 = 0.1 * step;
    update.bias_correction2 = 0.001 * step;
    update.grad_scale = 0.7;
    kernels::adamw_step(p.size(), p.data(), grad.data(), m.data(), v.data(), update, executor);
  }
  hash.add(p);
  hash.add(m);
  hash.add(v);
  Buffer<std::uint8_t> codes = Buffer<std::uint8_t>::zeros(2 * 20011);
  Buffer<float> maxima = Buffer<float>::zeros(2 * 79);
  for (int step = 1; step <= 3; ++step) {
    const kernels::AdamWStep update{.lr = 1e-3 / step, .weight_decay = 0.01, .bias_correction1 = 0.1 * step,
                                    .bias_correction2 = 0.001 * step, .grad_scale = 0.7};
    kernels::adamw_step(p.size(), p.data(), grad.data(), {codes.data(), codes.data() + 20011, maxima.data(), maxima.data() + 79},
                        update, executor);
  }
  hash.add(p);
  hash.add(codes.data(), static_cast<std::size_t>(codes.size()));
  hash.add(maxima.data(), static_cast<std::size_t>(maxima.size()));
  const double norm = kernels::squared_norm(grad.size(), grad.data());
  hash.add(&norm, 1);
  for (const SchedulerType type : {SchedulerType::kLinear, SchedulerType::kCosine}) {
    const LearningRateSchedule schedule(type, 3e-4, 1000, 30);
    for (Index step = 0; step <= 1000; step += 7) {
      const double rate = schedule.at(step);
      hash.add(&rate, 1);
    }
  }
}

void training(Hash& hash, ExecutorRef executor) {
  Model model(executor);
  const Records records;
  TrainerConfig config;
  config.learning_rate = 0.02;
  config.max_steps = 5;
  config.per_device_train_batch_size = 4;
  config.lr_scheduler_type = SchedulerType::kCosine;
  config.warmup_steps = 1;
  config.weight_decay = 0.01;
  config.max_grad_norm = 0.5;
  config.max_tokens_per_sub_batch = 40;
  TrainerEvents<float> events;
  events.on_step = [&](const StepEvent& event) {
    const double numbers[4] = {event.record.loss, event.record.learning_rate, event.record.grad_norm,
                               static_cast<double>(event.record.tokens)};
    hash.add(numbers, 4);
  };
  Trainer<Model, Records> trainer(model, config, records, &records, events, executor);
  const TrainerResult result = trainer.run();
  const double losses[2] = {result.val_loss_before.value_or(0.0), result.val_loss_after.value_or(0.0)};
  hash.add(losses, 2);
  const TrainerState<float> state = trainer.state();
  for (const NamedTensor<float>& one : state.parameters) hash.add(one.values.data, static_cast<std::size_t>(one.values.size));
  for (const Moments<float>& one : state.moments) {
    for (const auto& values : {one.m, one.v}) hash.add(values.data, static_cast<std::size_t>(values.size));
  }
}

// -- activations in 8 bits: by every instruction set of this processor, which give the same bits -------------------------
void int8_activations(Hash& hash, ExecutorRef executor) {
  for (const Index rows : {Index{1}, Index{6}, Index{21}}) {
    const Matrix<float> x = numbers<float>(rows, 192, 36), w = numbers<float>(70, 192, 37);
    const Nf4Tensor tensor = Nf4Tensor::quantize(w.view(), {.block_size = 64, .double_quant = rows == 6}, executor);
    kernels::FourBitOperand operand = tensor.operand();
    tensor.take_int8_activations(operand);
    Matrix<float> first;
    for (const kernels::Isa isa : kernels::kIsas) {
      if (!kernels::has_isa(isa)) continue;
      Matrix<float> y(rows, 70);
      kernels::GemmProblem p;
      p.m = rows, p.n = 70, p.k = 192;
      p.a = {x.data(), 192, DType::kF32, false};
      p.b.four_bit = &operand;
      p.c = y.data(), p.c_stride = 70;
      kernels::detail::int8_four_bit(p, kernels::table_of(isa), executor);
      if (first.empty()) {
        hash.add(y);
        first = std::move(y);
      } else if (std::memcmp(y.data(), first.data(), static_cast<std::size_t>(y.size()) * sizeof(float)) != 0) {
        std::printf("int8 of %s differs\n", std::string(kernels::name_of(isa)).c_str());
        failed() = true;
      }
    }
  }
}

// -- numbers that are not finite are seen, whatever the flags -----------------------------------------------------------
void check(bool good, const char* what) {
  if (good) return;
  std::printf("not seen: %s\n", what);
  failed() = true;
}

void non_finite(Hash&, ExecutorRef executor) {
  for (const std::uint32_t pattern : {0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0x7F800000u, 0xFF800000u}) {
    const float bad = from_bits(pattern);
    const bool is_nan = (pattern & 0x7FFFFFu) != 0;
    check(!is_finite(bad) && !is_finite(static_cast<double>(bad)), "is_finite");
    for (const Index n : {Index{1}, Index{16}, Index{37}}) {
      for (Index at = 0; at < n; ++at) {
        Matrix<float> x = numbers<float>(1, n, 95);
        check(!kernels::any_non_finite(n, x.data()), "a finite row is called broken");
        x.data()[at] = bad;
        check(kernels::any_non_finite(n, x.data()), "any_non_finite");
        check(!is_finite(kernels::squared_norm(n, x.data())), "squared_norm");
        // exp(−∞) is 0: a logit of −∞ is in order where it is not the target's.
        if ((is_nan || pattern == 0x7F800000u || at == 0) && n > 1) {
          check(!cross_entropy_hides(bad, at, n, executor), "cross_entropy");
        }
      }
    }
    check(!is_nan || is_nan_bits(swiglu_of(bad, executor)), "swiglu");
    check(!is_nan || !attention_hides(bad, executor), "attention");
    check(training_refuses(bad, executor), "Trainer");
    check(merge_refuses(bad, executor), "merge");
  }
}

}  // namespace

int main() try {
  std::printf("isa %s\n", std::string(kernels::name_of(kernels::active_isa())).c_str());
  run("conversions", conversions);
  run("random", random_numbers);
  run("gemm", gemm_products);
  run("four_bits", four_bits);
  run("int8_activations", int8_activations);
  run("lora", lora_methods);
  run("virtual_tokens", virtual_tokens);
  run("merge", merges);
  run("rows", all_row_ops);
  run("attention", all_attention);
  run("rope", rope);
  run("cross_entropy", cross_entropy);
  run("optimizer", optimizer);
  run("training", training);
  run("non_finite", non_finite);
  return failed() ? 1 : 0;
} catch (const peft::ConfigError& error) {
  std::fprintf(stderr, "%s\n", error.what());  // PEFT_FORCE_ISA names what this processor lacks
  return 77;
}
