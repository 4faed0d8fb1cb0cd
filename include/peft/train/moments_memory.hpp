#pragma once
/// Where an optimizer's moments live: a run of zeroed bytes in memory or in a file, one stretch per parameter,
///   in 32 bits (A)  m [n] · v [n]
///   in 8 bits       codes of m [n] · codes of v [n] · maxima of m [n/256] · maxima of v [n/256]
/// In a file they are used window after window: a window is read while the one before is computed, and written back and
/// dropped after it. What fits in the budget beside two windows stays in memory: the first parameters' moments.

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/error.hpp"
#include "peft/io/paged_buffer.hpp"
#include "peft/kernels/adamw.hpp"
#include "peft/train/moments.hpp"

PEFT_BEGIN_NAMESPACE

/// A file for an optimizer's state, and how much of it may be in memory.
struct PagedMemory {
  std::filesystem::path folder;           ///< on a disk; the file has no name in it
  Index budget = Index{256} << 20;        ///< bytes
};

/// One thread at a time.
template <std::floating_point A>
class MomentsMemory {
 public:
  /// A parameter's stretch.
  struct Place {
    std::string name;
    Index rows = 0;
    Index cols = 0;
    Index size = 0;
    bool is_8bit = false;
    std::size_t offset = 0;
  };

  explicit MomentsMemory(std::optional<PagedMemory> paging) : paging_(std::move(paging)) {}

  bool empty() const noexcept { return places_.empty(); }
  const std::vector<Place>& places() const noexcept { return places_; }
  /// Elements of a window; a parameter's last window may have fewer.
  Index window(const Place& place) const noexcept { return paging_ ? std::min(window_, place.size) : place.size; }

  /// Takes zeroed memory for `places`, whose offsets it sets. Throws IoError for what the disk refuses, ConfigError where the
  /// budget is too small, naming the least.
  void take(std::vector<Place> places) {
    const std::size_t total = set_offsets(places);
    if (paging_) {
      const std::size_t kept = choose_window(places, total);
      file_ = PagedBuffer(paging_->folder, total);
      file_.keep(kept);
      data_ = file_.data();
    } else {
      heap_ = Buffer<std::byte>::zeros(static_cast<Index>(total));
      data_ = heap_.data();
    }
    places_ = std::move(places);
  }

  /// Bytes of all stretches.
  static std::size_t total_bytes(std::vector<Place> places) { return set_offsets(places); }
  /// The least budget of a file of them.
  static std::size_t least_budget(const std::vector<Place>& places) {
    return std::min(total_bytes(places), 2 * largest(places, kernels::kAdamWRun));
  }

  A* m(const Place& place) const noexcept { return reinterpret_cast<A*>(data_ + place.offset); }
  A* v(const Place& place) const noexcept { return m(place) + padded(place.size, kPadding / sizeof(A)); }
  kernels::EightBitMoments eight_bit(const Place& place) const noexcept {
    auto* const codes = reinterpret_cast<std::uint8_t*>(data_ + place.offset);
    const auto n = padded(place.size, kPadding);
    auto* const maxima = reinterpret_cast<float*>(codes + 2 * n);
    return {codes, codes + n, maxima, maxima + padded(blocks(place.size), kPadding / sizeof(float))};
  }

  /// Before elements [first, first + window) of a parameter are used. Throws IoError where the disk fails.
  void enter(const Place& place, Index first) const {
    if (!paging_) return;
    for (const auto& part : parts(place, first)) file_.populate(part);
  }
  /// After that.
  void leave(const Place& place, Index first) const noexcept {
    if (!paging_) return;
    for (const auto& part : parts(place, first)) file_.release(part);
  }
  /// These are next.
  void prefetch(const Place& place, Index first) const noexcept {
    if (!paging_) return;
    for (const auto& part : parts(place, first)) file_.prefetch(part);
  }
  /// Gives back the memory of bytes that others have read, say to save them.
  void release(std::span<const std::byte> part) const noexcept {
    if (paging_) file_.release(part);
  }

  Moments<A> moments(const Place& place) const {
    Moments<A> result{place.name, place.rows, place.cols};
    if (place.is_8bit) {
      const kernels::EightBitMoments own = eight_bit(place);
      result.m_8bit = {{own.m, place.size}, {own.m_absmax, blocks(place.size)}};
      result.v_8bit = {{own.v, place.size}, {own.v_absmax, blocks(place.size)}};
    } else {
      result.m = {m(place), place.size};
      result.v = {v(place), place.size};
    }
    return result;
  }

  /// Copies saved moments of the same size and kind, window after window. `done`, called with the bytes of `from` that are not
  /// needed any longer.
  template <class Done>
  void assign(const Place& place, const Moments<A>& from, Done&& done) const {
    for (Index first = 0; first < place.size; first += window(place)) {
      const Index count = std::min(window(place), place.size - first);
      enter(place, first);
      const auto copy = [&](auto* to, const auto* source, Index begin, Index n) {
        const auto bytes = std::as_bytes(std::span(source + begin, static_cast<std::size_t>(n)));
        std::memcpy(to + begin, bytes.data(), bytes.size());
        done(bytes);
      };
      if (place.is_8bit) {
        const kernels::EightBitMoments own = eight_bit(place);
        const Index block = first / kernels::kEightBitBlock;
        copy(own.m, from.m_8bit.codes.data, first, count);
        copy(own.v, from.v_8bit.codes.data, first, count);
        copy(own.m_absmax, from.m_8bit.absmax.data, block, blocks(count));
        copy(own.v_absmax, from.v_8bit.absmax.data, block, blocks(count));
      } else {
        copy(m(place), from.m.data, first, count);
        copy(v(place), from.v.data, first, count);
      }
      leave(place, first);
    }
  }

  static constexpr Index blocks(Index size) noexcept {
    return (size + kernels::kEightBitBlock - 1) / kernels::kEightBitBlock;
  }

 private:
  using Parts = std::array<std::span<const std::byte>, 4>;
  /// Stretches begin with a page, so that dropping one leaves its neighbours; the runs within with a cache line.
  static constexpr std::size_t kPage = 4096, kPadding = kAlignment;

  template <std::integral N>
  static constexpr N padded(N size, std::size_t to) noexcept {
    return (size + static_cast<N>(to) - 1) / static_cast<N>(to) * static_cast<N>(to);
  }
  static std::size_t set_offsets(std::vector<Place>& places) {
    std::size_t total = 0;
    for (Place& place : places) {
      place.offset = total;
      total += padded(bytes_of(place, place.size), kPage);
    }
    return total;
  }
  /// Of `count` elements of a parameter.
  static std::size_t bytes_of(const Place& place, Index count) {
    const auto n = static_cast<std::size_t>(count);
    if (n > static_cast<std::size_t>(-1) / 64) throw std::bad_alloc();
    if (!place.is_8bit) return 2 * padded(n * sizeof(A), kPadding);
    return 2 * padded(n, kPadding) + 2 * padded(static_cast<std::size_t>(blocks(count)) * sizeof(float), kPadding);
  }

  /// Where elements [first, first + window) stand: two runs, or four.
  Parts parts(const Place& place, Index first) const noexcept {
    const Index count = std::min(window(place), place.size - first);
    const auto part = [](const auto* begin, Index n) {
      return std::as_bytes(std::span(begin, static_cast<std::size_t>(n)));
    };
    if (!place.is_8bit) return {part(m(place) + first, count), part(v(place) + first, count), {}, {}};
    const kernels::EightBitMoments own = eight_bit(place).from(first);
    return {part(own.m, count), part(own.v, count), part(own.m_absmax, blocks(count)), part(own.v_absmax, blocks(count))};
  }

  /// What a window of a parameter takes in memory at most, with what the system maps around its runs.
  static std::size_t resident(const Place& place, Index window) {
    const std::size_t around = 2 * (PagedBuffer::kNeighbourhood + PagedBuffer::page_size());
    const std::size_t window_bytes = bytes_of(place, std::min(window, place.size)) + (place.is_8bit ? 4 : 2) * around;
    return std::min(window_bytes, padded(bytes_of(place, place.size), kPage) + around);
  }
  static std::size_t largest(const std::vector<Place>& places, Index window) {
    std::size_t result = 0;
    for (const Place& place : places) result = std::max(result, resident(place, window));
    return result;
  }

  /// Sets the window; returns how many bytes can stay in memory.
  std::size_t choose_window(const std::vector<Place>& places, std::size_t total) {
    const auto budget = static_cast<std::size_t>(std::max(Index{0}, paging_->budget));
    window_ = kernels::kAdamWRun;
    if (total <= budget) {
      for (const Place& place : places) window_ = std::max(window_, place.size);
      return total;
    }
    const std::size_t least = 2 * largest(places, window_);
    if (least > budget) {
      fail<ConfigError>("paged AdamW: its state has {} bytes and the budget is {}; the least that works is {}", total, budget,
                        std::min(least, total));
    }
    // A quarter of the budget each for the window in use and the next one; the rest for what stays.
    while (4 * largest(places, 2 * window_) <= budget && largest(places, 2 * window_) > largest(places, window_)) window_ *= 2;
    return budget - 2 * largest(places, window_);
  }

  std::optional<PagedMemory> paging_;
  Index window_ = 0;
  std::vector<Place> places_;
  Buffer<std::byte> heap_;
  PagedBuffer file_;
  std::byte* data_ = nullptr;
};

PEFT_END_NAMESPACE
