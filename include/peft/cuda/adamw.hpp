#pragma once
/// AdamW on the GPU; the formula and the numbers are peft::AdamW's (train/adamw.hpp), which says what the configuration means.
/// Moments in 32 bits, or in 8 as bitsandbytes has them. All parameters are one launch per kind.
///   prepare(model, lr, …)  once a step: coefficients for the step go to the device
///   launch(context)        the update; can be captured in a graph and replayed after each prepare()
/// `model.for_each_parameter` shows (ParameterInfo, DeviceVectorView<float> value, … gradient), as cuda::Lora does.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "peft/cuda/adamw_state.hpp"
#include "peft/cuda/buffer.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/event.hpp"
#include "peft/cuda/kernels/adamw.cuh"
#include "peft/cuda/kernels/adamw_8bit.cuh"
#include "peft/cuda/prefetch.hpp"
#include "peft/cuda/stream.hpp"
#include "peft/cuda/transfer.hpp"
#include "peft/parameter.hpp"

// The CPU's kernels, of which the header shows a few, have pragmas for g++ and clang that nvcc's front end does not know.
#ifdef __CUDACC__
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675
#endif
#include "peft/train/adamw.hpp"
#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// What an optimizer's moments were, in the host's memory: as files keep them (peft::Moments).
struct AdamWSnapshot {
  std::vector<std::byte> bytes;
  std::vector<Moments<float>> moments;  ///< views of `bytes`
  Index steps = 0;
};

template <class Memory>
class BasicAdamW {
 public:
  /// Bytes of one window of paged moments.
  static constexpr Index kWindowBytes = Index{64} << 20;

  /// Throws ConfigError. `device_budget`: of managed moments, the bytes that stay on the device; the others come for their
  /// update and go. Of no meaning for moments in the device's own memory.
  explicit BasicAdamW(AdamWConfig config = {}, Index device_budget = Index{1} << 62)
      : config_(std::move(config)), budget_(device_budget) {
    config_.validate();
    if (config_.paged) {
      fail<ConfigError>(
          "cuda::AdamW: paged moments in a file are the CPU's; expected none, use cuda::PagedAdamW for managed memory");
    }
    if (budget_ < 0) fail<ConfigError>("cuda::AdamW: device_budget is {}; expected a number from 0", budget_);
  }

  const AdamWConfig& config() const noexcept { return config_; }
  /// Updates prepared so far (t).
  Index steps() const noexcept { return steps_; }
  /// Bytes of moments.
  Index state_bytes() const noexcept { return state_.byte_size(); }
  /// A factor of all gradients that stands on the device (kernels/reduce.cuh writes it), or null.
  void set_clip(const float* factor) noexcept { clip_ = factor; }

  /// One update of every parameter of `model` with gradient × grad_scale. Throws ConfigError, ShapeError, CudaError.
  template <class Model>
  void step(Model& model, double learning_rate, double grad_scale, Context& context) {
    prepare(model, learning_rate, grad_scale, context);
    launch(context);
  }

  /// Takes memory the first time, and then the coefficients of the next step. Throws ConfigError where the set of parameters is
  /// not that of the steps before, ShapeError, CudaError.
  template <class Model>
  void prepare(Model& model, double learning_rate, double grad_scale, Context& context) {
    visit(model);
    if (state_.empty() && !places_.empty()) take_memory(context);
    const double t = static_cast<double>(steps_ + 1);
    peft::kernels::AdamWStep update;
    update.beta1 = config_.beta1;
    update.beta2 = config_.beta2;
    update.eps = config_.eps;
    update.bias_correction1 = 1.0 - std::pow(config_.beta1, t);
    update.bias_correction2 = 1.0 - std::pow(config_.beta2, t);
    update.grad_scale = grad_scale;
    host_scalars_.clear();
    for (const Seen& seen : seen_) {
      update.weight_decay = seen.decay ? config_.weight_decay : 0.0;
      update.lr = learning_rate * seen.rate;
      const peft::kernels::AdamWFloats f = peft::kernels::adamw_floats(update);
      static_assert(sizeof(f) == sizeof(kernels::AdamWScalars));
      kernels::AdamWScalars scalars;
      std::memcpy(&scalars, &f, sizeof(f));
      host_scalars_.push_back(scalars);
    }
    copy_in(host_scalars_, scalars_, context, "the coefficients");
    if (!kPaged) describe(context);
    ++steps_;
  }

  /// The update that prepare() described. Managed moments cannot be captured in a graph: their pages move. Throws CudaError.
  void launch(Context& context) {
    if (places_.empty()) return;
    if constexpr (kPaged) {
      launch_paged(context);
    } else {
      if (!host_tensors_.empty()) {
        kernels::AdamWArgs<float> args{};
        args.tensors = tensors_.data();
        args.chunks = chunks_.data();
        args.chunk_count = static_cast<int>(host_chunks_.size());
        args.scalars_from = scalars_.data();
        args.clip = clip_;
        check(kernels::adamw_step(args, context.stream()), "adamw kernel: {} parameters", host_tensors_.size());
      }
      if (!host_tensors_8bit_.empty()) {
        kernels::AdamW8bitArgs<float> args{};
        args.tensors = tensors_8bit_.data();
        args.chunks = chunks_8bit_.data();
        args.chunk_count = static_cast<int>(host_chunks_8bit_.size());
        args.scalars_from = scalars_.data();
        args.clip = clip_;
        args.tables = tables();
        check(kernels::adamw_8bit_step(args, context.stream()), "adamw_8bit kernel: {} parameters", host_tensors_8bit_.size());
      }
    }
  }

  /// The moments, in the host's memory. Throws CudaError.
  AdamWSnapshot snapshot(Context& context) const {
    AdamWSnapshot result;
    result.steps = steps_;
    result.bytes.resize(static_cast<std::size_t>(state_.byte_size()));
    if (!state_.empty()) {
      detail::copy_rows(result.bytes.data(), state_.byte_size(), state_.data(), state_.byte_size(), state_.byte_size(), 1,
                        cudaMemcpyDefault, context.stream(), "cuda::AdamW::snapshot");
    }
    const auto at = [&result](Index offset) { return result.bytes.data() + offset; };
    for (const AdamWPlace& place : places_) {
      Moments<float> one;
      one.name = place.name;
      one.rows = place.rows, one.cols = place.cols;
      if (place.is_8bit) {
        one.m_8bit = {{reinterpret_cast<const std::uint8_t*>(at(place.m)), place.size},
                      {reinterpret_cast<const float*>(at(place.m_absmax)), place.blocks()}};
        one.v_8bit = {{reinterpret_cast<const std::uint8_t*>(at(place.v)), place.size},
                      {reinterpret_cast<const float*>(at(place.v_absmax)), place.blocks()}};
      } else {
        one.m = {reinterpret_cast<const float*>(at(place.m)), place.size};
        one.v = {reinterpret_cast<const float*>(at(place.v)), place.size};
      }
      result.moments.push_back(std::move(one));
    }
    return result;
  }

  /// Continues from saved moments, which are copied, after `steps` updates. Throws ConfigError where a parameter's moments are
  /// not of the kind that this optimizer keeps, ShapeError; CudaError.
  void restore(std::span<const Moments<float>> saved, Index steps, Context& context) {
    std::vector<AdamWPlace> places;
    for (const Moments<float>& one : saved) {
      AdamWPlace place = place_of(one.name, one.rows, one.cols, one.rows * one.cols);
      if (one.is_8bit() != place.is_8bit) {
        fail<ConfigError>(
            "cuda::AdamW: the saved moments of parameter {} are in {} bits; expected {}: go on with the optimizer "
            "that the run began with",
            one.name, one.is_8bit() ? 8 : 32, place.is_8bit ? 8 : 32);
      }
      const Index m = place.is_8bit ? one.m_8bit.codes.size : one.m.size,
                  v = place.is_8bit ? one.v_8bit.codes.size : one.v.size;
      const Index maxima = place.is_8bit ? place.blocks() : 0;
      if (m != place.size || v != place.size || one.m_8bit.absmax.size != maxima || one.v_8bit.absmax.size != maxima) {
        fail<ShapeError>(
            "cuda::AdamW: the saved moments of parameter {} have {} and {} elements, and {} and {} maxima; expected "
            "{} and {}",
            one.name, m, v, one.m_8bit.absmax.size, one.v_8bit.absmax.size, place.size, maxima);
      }
      places.push_back(std::move(place));
    }
    places_ = std::move(places);
    state_ = {};
    if (!places_.empty()) take_memory(context);
    std::vector<std::byte> bytes(static_cast<std::size_t>(state_.byte_size()));
    const auto put = [&bytes](Index offset, const auto& view) {
      if (view.size > 0)
        std::memcpy(bytes.data() + offset, view.data, static_cast<std::size_t>(view.size) * sizeof(*view.data));
    };
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const AdamWPlace& place = places_[i];
      if (place.is_8bit) {
        put(place.m, saved[i].m_8bit.codes), put(place.m_absmax, saved[i].m_8bit.absmax);
        put(place.v, saved[i].v_8bit.codes), put(place.v_absmax, saved[i].v_8bit.absmax);
      } else {
        put(place.m, saved[i].m), put(place.v, saved[i].v);
      }
    }
    if (!bytes.empty()) {
      detail::copy_rows(state_.data(), state_.byte_size(), bytes.data(), state_.byte_size(), state_.byte_size(), 1,
                        cudaMemcpyDefault, context.stream(), "cuda::AdamW::restore");
    }
    seen_.clear();
    steps_ = steps;
  }

 private:
  static constexpr bool kPaged = std::is_same_v<Memory, ManagedMemory>;

  /// A parameter as the model last showed it.
  struct Seen {
    std::size_t place;
    float* value;
    const float* grad;
    double rate;
    bool decay;
  };

  AdamWPlace place_of(std::string_view name, Index rows, Index cols, Index size) const {
    AdamWPlace place;
    place.name = name;
    place.rows = rows, place.cols = cols, place.size = size;
    place.is_8bit = config_.optim_bits == 8 && size >= config_.min_8bit_size && size > 0;
    return place;
  }

  /// 1, or LoRA+'s multiple.
  double rate_of(const ParameterInfo& info) const noexcept {
    if (config_.loraplus_lr_ratio == 0.0) return 1.0;
    if (info.role == ParameterRole::kEmbedding) return config_.loraplus_embedding_ratio;
    return info.role == ParameterRole::kLoraB || info.dimensions == 1 ? config_.loraplus_lr_ratio : 1.0;
  }

  template <class Model>
  void visit(Model& model) {
    const bool is_first = places_.empty();
    std::vector<AdamWPlace> added;
    seen_.clear();
    model.for_each_parameter([&](const ParameterInfo& info, DeviceVectorView<float> value, DeviceVectorView<float> grad) {
      if (grad.size != value.size) {
        fail<ShapeError>(
            "cuda::AdamW: parameter {} has {} elements and a gradient of {}; expected as many: ensure_grads() before "
            "training",
            info.name, value.size, grad.size);
      }
      std::size_t position = seen_.size();
      if (is_first) {
        for (const AdamWPlace& other : added) {
          if (other.name == info.name) fail<ConfigError>("cuda::AdamW: two parameters are named {}", info.name);
        }
        added.push_back(place_of(info.name, info.rows, info.cols, value.size));
      } else {
        position = find(info, value.size, position);
      }
      seen_.push_back({position, value.data, grad.data, rate_of(info), info.decay});
    });
    if (is_first) places_ = std::move(added);
    if (seen_.size() != places_.size()) {
      fail<ConfigError>("cuda::AdamW: {} parameters were visited; expected {}, those of the steps before", seen_.size(),
                        places_.size());
    }
  }
  std::size_t find(const ParameterInfo& info, Index size, std::size_t likely) const {
    std::size_t found = likely < places_.size() && places_[likely].name == info.name ? likely : places_.size();
    for (std::size_t i = 0; found == places_.size() && i < places_.size(); ++i) {
      if (places_[i].name == info.name) {
        found = i;
        break;
      }
    }
    if (found == places_.size()) {
      fail<ConfigError>("cuda::AdamW: there is no state for parameter {}; the set of parameters must stay the same", info.name);
    }
    if (places_[found].size != size) {
      fail<ShapeError>("cuda::AdamW: parameter {} has {} elements; expected {}, those of its state", info.name, size,
                       places_[found].size);
    }
    return found;
  }

  void take_memory(Context& context) {
    const Index bytes = place_moments(places_);
    state_ = BasicBuffer<std::byte, Memory>(bytes);
    state_.fill_zero(context.stream());
    bool any_8bit = false;
    for (const AdamWPlace& place : places_) any_8bit = any_8bit || place.is_8bit;
    if (any_8bit && tables_.empty()) take_tables(context);
    // Parameters' moments stay on the device from the first on, as long as two windows of the others fit beside them.
    resident_ = 0;
    if (bytes <= budget_) {
      resident_ = places_.size();
    } else {
      while (resident_ < places_.size() && places_[resident_].end + 2 * kWindowBytes <= budget_) ++resident_;
    }
  }

  /// Values and words of both dynamic maps, one behind the other.
  void take_tables(Context& context) {
    const peft::kernels::EightBitTable& m = peft::kernels::signed_eight_bit_table();
    const peft::kernels::EightBitTable& v = peft::kernels::unsigned_eight_bit_table();
    std::vector<std::uint32_t> words(static_cast<std::size_t>(kTableWords));
    std::memcpy(words.data(), m.value, 1024);
    std::memcpy(words.data() + 256, m.word, 4 * kernels::kEightBitSignedWords);
    std::memcpy(words.data() + 256 + kernels::kEightBitSignedWords, v.value, 1024);
    std::memcpy(words.data() + 512 + kernels::kEightBitSignedWords, v.word, 4 * kernels::kEightBitUnsignedBuckets);
    copy_in(words, tables_, context, "the maps of 8 bits");
  }
  kernels::EightBitTables tables() const noexcept {
    const std::uint32_t* words = tables_.data();
    return {reinterpret_cast<const float*>(words), words + 256,
            reinterpret_cast<const float*>(words + 256 + kernels::kEightBitSignedWords),
            words + 512 + kernels::kEightBitSignedWords};
  }
  static constexpr Index kTableWords = 512 + kernels::kEightBitSignedWords + kernels::kEightBitUnsignedBuckets;

  /// Host vector to device buffer. The source is staged before the call returns, so it may change afterwards.
  template <class T>
  static void copy_in(const std::vector<T>& from, DeviceBuffer<T>& to, Context& context, std::string_view what) {
    if (static_cast<Index>(from.size()) > to.capacity()) context.synchronize();  // who still reads the old memory is done
    to.resize_discard(static_cast<Index>(from.size()));
    if (from.empty()) return;
    check(cudaMemcpyAsync(to.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, context.stream()),
          "cuda::AdamW: copying {} ({} bytes)", what, from.size() * sizeof(T));
  }

  template <class T>
  T* part(Index offset) noexcept {
    return reinterpret_cast<T*>(state_.data() + offset);
  }
  /// Elements [first, first + n) of a parameter; `first` is a multiple of kMomentBlock.
  kernels::AdamWTensor<float> tensor_of(const Seen& seen, std::int32_t group, Index first, Index n) noexcept {
    const AdamWPlace& place = places_[seen.place];
    return {
        seen.value + first, seen.grad + first, part<float>(place.m) + first, part<float>(place.v) + first, nullptr, n, group};
  }
  kernels::AdamW8bitTensor<float> tensor_8bit_of(const Seen& seen, std::int32_t group, Index first, Index n) noexcept {
    const AdamWPlace& place = places_[seen.place];
    const Index block = first / kMomentBlock;
    return {seen.value + first,
            seen.grad + first,
            part<std::uint8_t>(place.m) + first,
            part<std::uint8_t>(place.v) + first,
            part<float>(place.m_absmax) + block,
            part<float>(place.v_absmax) + block,
            nullptr,
            n,
            group};
  }

  /// Tensors and their chunks to the device, where they changed.
  void describe(Context& context) {
    std::vector<kernels::AdamWTensor<float>> tensors;
    std::vector<kernels::AdamW8bitTensor<float>> tensors_8bit;
    std::vector<kernels::TensorChunk> chunks, chunks_8bit;
    for (std::size_t i = 0; i < seen_.size(); ++i) {
      const AdamWPlace& place = places_[seen_[i].place];
      const auto group = static_cast<std::int32_t>(i);
      auto& list = place.is_8bit ? chunks_8bit : chunks;
      const auto number = static_cast<std::int32_t>(place.is_8bit ? tensors_8bit.size() : tensors.size());
      for (Index c = 0; c < kernels::tensor_chunks(place.size); ++c) list.push_back({number, static_cast<std::int32_t>(c)});
      if (place.is_8bit) {
        tensors_8bit.push_back(tensor_8bit_of(seen_[i], group, 0, place.size));
      } else {
        tensors.push_back(tensor_of(seen_[i], group, 0, place.size));
      }
    }
    replace(tensors, host_tensors_, tensors_, context, "the parameters");
    replace(chunks, host_chunks_, chunks_, context, "the parameters' chunks");
    replace(tensors_8bit, host_tensors_8bit_, tensors_8bit_, context, "the parameters");
    replace(chunks_8bit, host_chunks_8bit_, chunks_8bit_, context, "the parameters' chunks");
  }
  template <class T>
  static void replace(std::vector<T>& fresh, std::vector<T>& before, DeviceBuffer<T>& device, Context& context,
                      std::string_view what) {
    const auto is_same = [](const T& a, const T& b) {
      // Member by member: bytes between members are not values.
      if constexpr (std::is_same_v<T, kernels::TensorChunk>) {
        return a.tensor == b.tensor && a.chunk == b.chunk;
      } else {
        return a.param == b.param && a.grad == b.grad && a.m == b.m && a.v == b.v && a.n == b.n && a.group == b.group;
      }
    };
    if (std::equal(fresh.begin(), fresh.end(), before.begin(), before.end(), is_same)) return;
    before = std::move(fresh);
    copy_in(before, device, context, what);
  }

  /// Parameter after parameter, window after window: while one is computed, the next one's moments come, on a stream of their
  /// own, and those of the one before go where they do not stay.
  void launch_paged(Context& context) {
    struct Window {
      std::size_t seen;
      Index first, count;
    };
    std::vector<Window> windows;
    for (std::size_t i = 0; i < seen_.size(); ++i) {
      const AdamWPlace& place = places_[seen_[i].place];
      const Index window = place.is_8bit ? kWindowBytes / 2 : kWindowBytes / 8;
      for (Index first = 0; first < place.size; first += window)
        windows.push_back({i, first, std::min(window, place.size - first)});
    }
    if (!pages_) pages_.emplace();
    while (arrived_.size() < windows.size()) arrived_.emplace_back();
    while (computed_.size() < windows.size()) computed_.emplace_back();
    const auto move = [&](const Window& w, Residence to) {
      const AdamWPlace& place = places_[seen_[w.seen].place];
      const Index size = place.is_8bit ? 1 : 4;
      for (const Index offset : {place.m, place.v}) {
        prefetch(state_.data() + offset + w.first * size, w.count * size, to, context.device(), pages_->stream);
      }
      if (!place.is_8bit) return;
      const Index block = w.first / kMomentBlock, blocks = (w.count + kMomentBlock - 1) / kMomentBlock;
      for (const Index offset : {place.m_absmax, place.v_absmax}) {
        prefetch(state_.data() + offset + block * 4, blocks * 4, to, context.device(), pages_->stream);
      }
    };
    const auto bring = [&](std::size_t i) {
      if (i >= 2 && seen_[windows[i - 2].seen].place >= resident_) {
        computed_[i - 2].make_wait(pages_->stream);
        move(windows[i - 2], Residence::kHost);
      }
      if (i >= windows.size()) return;
      move(windows[i], Residence::kDevice);
      arrived_[i].record(pages_->stream);
    };
    // What the caller's stream did before (gradients) does not concern moments, but restore() and the first zeroes do.
    pages_->begin.record(context.stream());
    pages_->begin.make_wait(pages_->stream);
    bring(0);
    for (std::size_t i = 0; i < windows.size(); ++i) {
      bring(i + 1);
      arrived_[i].make_wait(context.stream());
      launch_window(windows[i].seen, windows[i].first, windows[i].count, context);
      computed_[i].record(context.stream());
    }
    bring(windows.size() + 1);
    // So that the next step's pages come after these went.
    pages_->end.record(pages_->stream);
    pages_->end.make_wait(context.stream());
  }
  void launch_window(std::size_t index, Index first, Index count, Context& context) {
    const Seen& seen = seen_[index];
    const AdamWPlace& place = places_[seen.place];
    const auto group = static_cast<std::int32_t>(index);
    if (place.is_8bit) {
      kernels::AdamW8bitArgs<float> args{};
      args.tensor = tensor_8bit_of(seen, group, first, count);
      args.scalars_from = scalars_.data();
      args.clip = clip_;
      args.tables = tables();
      check(kernels::adamw_8bit_step(args, context.stream()), "adamw_8bit kernel: {} elements of {}", count, place.name);
    } else {
      kernels::AdamWArgs<float> args{};
      args.tensor = tensor_of(seen, group, first, count);
      args.scalars_from = scalars_.data();
      args.clip = clip_;
      check(kernels::adamw_step(args, context.stream()), "adamw kernel: {} elements of {}", count, place.name);
    }
  }

  struct Pages {
    Stream stream;
    Event begin, end;
  };

  AdamWConfig config_;
  Index budget_ = 0;
  Index steps_ = 0;
  const float* clip_ = nullptr;
  std::vector<AdamWPlace> places_;
  std::vector<Seen> seen_;
  std::size_t resident_ = 0;  // places before it stay on the device
  BasicBuffer<std::byte, Memory> state_;
  std::vector<kernels::AdamWScalars> host_scalars_;
  DeviceBuffer<kernels::AdamWScalars> scalars_;  // one per parameter, in the order of visits
  DeviceBuffer<std::uint32_t> tables_;
  std::vector<kernels::AdamWTensor<float>> host_tensors_;
  std::vector<kernels::AdamW8bitTensor<float>> host_tensors_8bit_;
  std::vector<kernels::TensorChunk> host_chunks_, host_chunks_8bit_;
  DeviceBuffer<kernels::AdamWTensor<float>> tensors_;
  DeviceBuffer<kernels::AdamW8bitTensor<float>> tensors_8bit_;
  DeviceBuffer<kernels::TensorChunk> chunks_, chunks_8bit_;
  std::optional<Pages> pages_;
  std::vector<Event> arrived_, computed_;
};

/// Moments in the device's memory.
using AdamW = BasicAdamW<DeviceMemory>;

}  // namespace cuda
PEFT_END_NAMESPACE
