#pragma once
/// Global memory of the emulated device: kernels may touch registered ranges only. Buffer<T> is one that owns its memory, with
/// unregistered bytes around.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "shadow.hpp"

namespace peft_emulator {

/// A range of addresses that kernels may touch.
struct Region {
  std::uintptr_t begin = 0;
  std::size_t size = 0;
  std::string name;
  Shadow shadow;
};

/// All ranges, by their start.
class Registry {
 public:
  void add(Region& region) { regions_[region.begin] = &region; }
  void remove(const Region& region) {
    regions_.erase(region.begin);
    last_ = nullptr;
  }
  /// The range that holds all of the bytes; null where there is none.
  Region* find(std::uintptr_t address, std::size_t size) {
    if (last_ != nullptr && inside(*last_, address, size)) return last_;
    auto after = regions_.upper_bound(address);
    if (after == regions_.begin()) return nullptr;
    Region* region = std::prev(after)->second;
    if (!inside(*region, address, size)) return nullptr;
    last_ = region;
    return region;
  }
  /// "12 bytes behind the end of 'y' (256 bytes)": the range nearest to an address.
  std::string describe(std::uintptr_t address) const {
    const Region* nearest = nullptr;
    std::uintptr_t distance = ~std::uintptr_t{0};
    std::string text = "no buffer is registered";
    for (const auto& [begin, region] : regions_) {
      const bool before = address < begin;
      const std::uintptr_t end = begin + region->size;
      const std::uintptr_t d = before ? begin - address : address < end ? 0 : address - end;
      if (d < distance) {
        distance = d;
        nearest = region;
      }
    }
    if (nearest != nullptr) {
      const bool before = address < nearest->begin;
      const bool within = distance == 0 && !before && address < nearest->begin + nearest->size;
      text = within ? "reaches over the end"
                    : std::to_string(distance) + (before ? " bytes before the start" : " bytes behind the end");
      text += " of " + (nearest->name.empty() ? std::string("a buffer") : "'" + nearest->name + "'") + " of " +
              std::to_string(nearest->size) + " bytes";
    }
    return text;
  }

 private:
  static bool inside(const Region& region, std::uintptr_t address, std::size_t size) {
    return address >= region.begin && address - region.begin <= region.size && region.size - (address - region.begin) >= size;
  }

  std::map<std::uintptr_t, Region*> regions_;
  Region* last_ = nullptr;
};

inline Registry& registry() {
  static Registry all;
  return all;
}

/// Lets kernels touch memory that somebody else owns, for as long as this lives.
class Registration {
 public:
  Registration(const void* data, std::size_t bytes, std::string name = {}) {
    region_.begin = reinterpret_cast<std::uintptr_t>(data);
    region_.size = bytes;
    region_.name = std::move(name);
    registry().add(region_);
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;
  ~Registration() { registry().remove(region_); }

 private:
  Region region_;
};

/// size elements, the first at a multiple of 256 bytes, as cudaMalloc gives them.
template <class T>
class Buffer {
 public:
  /// All bytes 0xFF: not a number, so that what a kernel leaves out shows.
  explicit Buffer(std::ptrdiff_t size, std::string name = {}) : size_(size), memory_(allocate(bytes())) {
    std::memset(static_cast<void*>(data()), 0xFF, bytes());
    enter(std::move(name));
  }
  Buffer(std::ptrdiff_t size, T value, std::string name = {}) : Buffer(size, std::move(name)) {
    for (T& element : *this) element = value;
  }
  explicit Buffer(const std::vector<T>& values, std::string name = {})
      : Buffer(static_cast<std::ptrdiff_t>(values.size()), std::move(name)) {
    for (std::size_t i = 0; i < values.size(); ++i) data()[i] = values[i];
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    registry().remove(region_);
    std::free(memory_);
  }

  T* data() { return reinterpret_cast<T*>(static_cast<unsigned char*>(memory_) + kGuard); }
  const T* data() const { return reinterpret_cast<const T*>(static_cast<const unsigned char*>(memory_) + kGuard); }
  std::ptrdiff_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  T& operator[](std::ptrdiff_t i) { return data()[i]; }
  const T& operator[](std::ptrdiff_t i) const { return data()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  std::vector<T> to_vector() const { return std::vector<T>(begin(), end()); }

 private:
  // Wide, so that a kernel that goes wrong by a tile does not land in the next buffer.
  static constexpr std::size_t kGuard = 16 * 1024;

  static void* allocate(std::size_t bytes) {
    void* memory = std::aligned_alloc(256, (bytes + 2 * kGuard + 255) / 256 * 256);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  void enter(std::string name) {
    region_.begin = reinterpret_cast<std::uintptr_t>(data());
    region_.size = bytes();
    region_.name = std::move(name);
    registry().add(region_);
  }

  std::ptrdiff_t size_;
  void* memory_;
  Region region_;
};

}  // namespace peft_emulator
