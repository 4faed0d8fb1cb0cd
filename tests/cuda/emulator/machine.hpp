#pragma once
/// The emulated device: runs a launch block by block, each thread of a block a fiber that goes on until it waits for others.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "access_counter.hpp"
#include "buffer.hpp"
#include "fiber.hpp"
#include "report.hpp"
#include "shadow.hpp"

namespace peft_emulator {

struct Options {
  std::uint64_t seed = 0;
  bool random_schedule = false;  ///< order of threads, warps and blocks by the seed; else lowest first
  bool check_races = true;
  bool count_accesses = true;
  int most_shared_bytes = 227 * 1024;  ///< of a block; 64 KiB on sm_75, 99 KiB on sm_86, sm_89 and sm_120
};

class Machine {
 public:
  struct AsyncCopy {
    int offset;
    std::uint32_t group;
    Where where;
    std::array<unsigned char, 16> data;
  };
  struct Thread {
    Fiber fiber;
    int index = 0;
    bool started = false;
    bool done = false;
    bool at_barrier = false;
    Where where{"", 0};  // of what it waits for
    std::vector<AsyncCopy> copies;
    std::uint32_t groups = 0;  // of cp.async, closed
  };
  struct Warp {
    std::uint32_t existing = 0;
    std::uint32_t ready = 0;
    std::uint32_t waiting = 0;  // for other lanes
    std::uint32_t epoch = 0;
    bool partial = false;  // some lanes have met since all did
    std::array<std::uint16_t, 32> clock{};
    std::array<std::array<std::uint16_t, 32>, 32> known{};
    // What the waiting lanes wait for.
    std::array<std::uint32_t, 32> mask{};
    std::array<const char*, 32> operation{};
    std::array<void*, 32> payload{};
    AccessCounter counter;
  };
  using Execute = void (*)(Machine&, Warp&, int warp, std::uint32_t mask);

  // -- where the running thread is -------------------------------------------------------------------------------
  int thread_index() const { return current_->index; }
  int lane_index() const { return current_->index % 32; }
  int threads() const { return threads_; }
  std::array<int, 3> block{};
  std::array<int, 3> grid{};

  Options options;

  // -- launching -------------------------------------------------------------------------------------------------
  /// False where anything was found.
  bool run(std::array<int, 3> blocks, int threads, int shared_bytes, void (*body)(const void*), const void* args, Where where) {
    report_ = Report{};
    report_.launches = 1;
    places_of_findings_.clear();
    for (std::size_t i = 0; i < lines_.size(); ++i) clear(lines_.counts(static_cast<std::uint16_t>(i)));
    if (blocks[0] < 1 || blocks[1] < 1 || blocks[2] < 1 || blocks[1] > 65535 || blocks[2] > 65535 || threads < 1 ||
        threads > 1024 || shared_bytes < 0 || shared_bytes > options.most_shared_bytes) {
      find(Kind::kLaunch, where, [&] {
        return "grid " + std::to_string(blocks[0]) + " x " + std::to_string(blocks[1]) + " x " + std::to_string(blocks[2]) + ", " +
               std::to_string(threads) + " threads, " + std::to_string(shared_bytes) +
               " bytes of shared memory: at most 1024 threads and " + std::to_string(options.most_shared_bytes) + " bytes";
      });
      return close();
    }
    grid = blocks;
    threads_ = threads;
    shared_bytes_ = static_cast<std::size_t>(shared_bytes);
    body_ = body;
    args_ = args;
    random_ = options.seed * 0x9E3779B97F4A7C15u + 0x1234567u;
    if (shared_.size() < shared_bytes_ + 1) {
      shared_.resize(shared_bytes_ + 1);
      state_.resize(shared_bytes_ + 1);
      shared_shadow_.resize(shared_bytes_ + 1);
    }
    while (fibers_.size() < static_cast<std::size_t>(threads)) {
      fibers_.push_back(std::make_unique<Thread>());
      fibers_.back()->index = static_cast<int>(fibers_.size()) - 1;
    }
    const std::int64_t count = static_cast<std::int64_t>(blocks[0]) * blocks[1] * blocks[2];
    launch_epoch_ = ++epoch_;
    std::vector<std::int64_t> order;
    if (options.random_schedule) {
      for (std::int64_t i = 0; i < count; ++i) order.push_back(i);
      for (std::int64_t i = count - 1; i > 0; --i) {
        std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random(static_cast<std::uint64_t>(i) + 1))]);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t which = order.empty() ? i : order[static_cast<std::size_t>(i)];
      block = {static_cast<int>(which % blocks[0]), static_cast<int>(which / blocks[0] % blocks[1]),
               static_cast<int>(which / blocks[0] / blocks[1])};
      if (!run_block()) break;
    }
    return close();
  }

  const Report& last() const { return report_; }
  Report& all() { return all_; }

  // -- meetings --------------------------------------------------------------------------------------------------
  void sync_threads(Where where) {
    Thread& me = *current_;
    me.at_barrier = true;
    me.where = where;
    ++waiting_at_barrier_;
    set_ready(me, false);
    if (waiting_at_barrier_ + done_ == threads_) release_barrier();
    leave();
  }

  /// Waits for the lanes of the mask to come to the same operation; the last one runs execute, which may touch what the
  /// payloads of all point to. False, at once, where the mask does not name the caller.
  bool meet(const char* operation, Execute execute, std::uint32_t mask, void* payload, Where where, bool orders_memory = false) {
    Thread& me = *current_;
    const int lane = me.index % 32;
    if ((mask >> lane & 1u) == 0) {
      find(Kind::kMask, where, [&] {
        return std::string(operation) + ": " + name(me) + " calls it with mask " + hex(mask) + ", which does not name its lane";
      });
      return false;
    }
    Warp& warp = warps_[static_cast<std::size_t>(me.index / 32)];
    const auto at = static_cast<std::size_t>(lane);
    warp.mask[at] = mask;
    warp.operation[at] = operation;
    warp.payload[at] = payload;
    warp.waiting |= 1u << lane;
    me.where = where;
    set_ready(me, false);
    if ((warp.waiting & mask) == mask && same(warp, me.index / 32, mask, operation, where)) {
      if (execute != nullptr) execute(*this, warp, me.index / 32, mask);
      warp.waiting &= ~mask;
      warp.ready |= mask;
      ready_warps_ |= 1u << (me.index / 32);
      if (orders_memory) order(warp, mask);
      if (mask == warp.existing) warp.counter.flush(lines_);
    }
    leave();
    return true;
  }

  /// A shuffle that reads from a lane which the mask does not name.
  void stranger(const char* operation, std::uint32_t mask, int source, Where where) {
    find(Kind::kMask, where, [&] {
      return std::string(operation) + ": " + name(*current_) + " reads lane " + std::to_string(source) + ", which mask " + hex(mask) +
             " does not name";
    });
  }

  // -- shared memory ---------------------------------------------------------------------------------------------
  Thread& thread(int index) { return *fibers_[static_cast<std::size_t>(index)]; }
  Thread& current() { return *current_; }

  void shared_load(Thread& by, std::int64_t offset, std::size_t size, void* to, Where where) {
    std::memset(to, 0, size);
    const std::uint16_t line = lines_.id(where, Access::kSharedLoad);
    if (!shared_place(by, offset, size, line, where)) return;
    const auto at = static_cast<std::size_t>(offset);
    std::memcpy(to, shared_.data() + at, size);
    check_state(by, at, size, where, "read");
    if (options.check_races) {
      const Clash clash = shared_shadow_.read(at, size, shared_moment(by), line);
      if (clash.with != Clash::With::kNothing) report_clash(by, clash, "reads shared memory at byte " + std::to_string(at), where);
    }
  }
  void shared_store(Thread& by, std::int64_t offset, std::size_t size, const void* from, Where where) {
    const std::uint16_t line = lines_.id(where, Access::kSharedStore);
    if (!shared_place(by, offset, size, line, where)) return;
    const auto at = static_cast<std::size_t>(offset);
    check_pending(by, at, size, where, "overwritten");
    std::memcpy(shared_.data() + at, from, size);
    std::memset(state_.data() + at, kWritten, size);
    shared_written(by, at, size, line, where);
  }

  // -- cp.async --------------------------------------------------------------------------------------------------
  void async_copy(std::int64_t offset, const void* from, bool valid, Where where) {
    Thread& me = *current_;
    AsyncCopy copy{static_cast<int>(offset), me.groups, where, {}};
    if (valid) global_load(from, 16, copy.data.data(), where, false);
    const std::uint16_t line = lines_.id(where, Access::kSharedStore);
    if (!shared_place(me, offset, 16, line, where)) return;
    const auto at = static_cast<std::size_t>(offset);
    check_pending(me, at, 16, where, "overwritten");
    std::memset(shared_.data() + at, kPoison, 16);
    std::memset(state_.data() + at, kPending, 16);
    shared_written(me, at, 16, line, where);
    me.copies.push_back(copy);
  }
  void async_commit() { ++current_->groups; }
  void async_wait(std::uint32_t pending) {
    Thread& me = *current_;
    std::size_t kept = 0;
    for (AsyncCopy& copy : me.copies) {
      if (copy.group + pending < me.groups) {
        const auto at = static_cast<std::size_t>(copy.offset);
        std::memcpy(shared_.data() + at, copy.data.data(), 16);
        std::memset(state_.data() + at, kWritten, 16);
        shared_written(me, at, 16, lines_.id(copy.where, Access::kSharedStore), copy.where);
      } else {
        me.copies[kept++] = copy;
      }
    }
    me.copies.resize(kept);
  }

  // -- global memory ---------------------------------------------------------------------------------------------
  void global_load(const void* from, std::size_t size, void* to, Where where, bool read_only) {
    std::memset(to, 0, size);
    Thread& me = *current_;
    const auto address = reinterpret_cast<std::uintptr_t>(from);
    const std::uint16_t line = lines_.id(where, Access::kGlobalLoad);
    Region* region = global_place(me, address, size, where, "reads");
    if (region == nullptr) return;
    std::memcpy(to, from, size);
    if (options.count_accesses) warp_of(me).counter.add(line, me.index % 32, address, size);
    if (options.check_races) {
      const std::size_t at = address - region->begin;
      const Clash clash = region->shadow.read(at, size, moment(me), line);
      if (clash.with != Clash::With::kNothing) report_clash(me, clash, "reads " + place(*region, at), where);
      if (read_only && clash.written) {
        find(Kind::kReadOnly, where, [&] { return name(me) + " reads " + place(*region, at) + ", which this kernel writes"; });
      }
    }
  }
  void global_store(void* to, std::size_t size, const void* from, Where where) {
    Thread& me = *current_;
    const auto address = reinterpret_cast<std::uintptr_t>(to);
    const std::uint16_t line = lines_.id(where, Access::kGlobalStore);
    Region* region = global_place(me, address, size, where, "writes");
    if (region == nullptr) return;
    std::memcpy(to, from, size);
    if (options.count_accesses) warp_of(me).counter.add(line, me.index % 32, address, size);
    if (options.check_races) {
      const std::size_t at = address - region->begin;
      const Clash clash = region->shadow.write(at, size, moment(me), line);
      if (clash.with != Clash::With::kNothing) report_clash(me, clash, "writes " + place(*region, at), where);
    }
  }

 private:
  static constexpr unsigned char kPoison = 0xFF;  // not a number
  enum : unsigned char { kNothingThere = 0, kWritten = 1, kPending = 2 };

  // -- findings --------------------------------------------------------------------------------------------------
  template <class Text>
  void find(Kind kind, Where where, Text&& text) {
    const std::uint64_t key = reinterpret_cast<std::uintptr_t>(where.file) * 1000003u + static_cast<std::uint64_t>(where.line) * 16u +
                              static_cast<std::uint64_t>(kind);
    const auto [place, first] = places_of_findings_.try_emplace(key, report_.findings.size());
    if (!first) {
      ++report_.findings[place->second].times;
      return;
    }
    Finding finding;
    finding.kind = kind;
    finding.file = where.file;
    finding.line = where.line;
    finding.text = text();
    report_.findings.push_back(std::move(finding));
  }

  void report_clash(const Thread& by, const Clash& clash, const std::string& what, Where where) {
    find(Kind::kRace, where, [&] {
      const Where other = lines_.where(clash.line);
      std::string text = name(by) + " " + what + ", which ";
      if (clash.with == Clash::With::kWrite) {
        text += clash.other_block ? "another block wrote" : "thread " + std::to_string(clash.thread) + " wrote";
      } else {
        text += clash.other_block ? "another block read" : "another thread read";
      }
      text += " at " + std::string(other.file) + ":" + std::to_string(other.line);
      return text + (clash.other_block ? ": blocks are not ordered" : " with no barrier between");
    });
  }

  std::string name(const Thread& thread) const {
    return "block (" + std::to_string(block[0]) + ", " + std::to_string(block[1]) + ", " + std::to_string(block[2]) + ") thread " +
           std::to_string(thread.index);
  }
  static std::string place(const Region& region, std::size_t at) {
    return (region.name.empty() ? std::string("a buffer") : "'" + region.name + "'") + " at byte " + std::to_string(at);
  }
  static std::string hex(std::uint32_t value) {
    static constexpr char kDigits[] = "0123456789ABCDEF";
    std::string text = "0x";
    for (int shift = 28; shift >= 0; shift -= 4) text += kDigits[value >> shift & 0xFu];
    return text;
  }
  static std::string at_line(Where where) { return std::string(where.file) + ":" + std::to_string(where.line); }

  static void clear(LineCounts& counts) {
    counts.instructions = counts.lanes = counts.bytes = 0;
    counts.sectors = counts.sectors_needed = counts.transactions = counts.conflicts = 0;
  }

  bool close() {
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      const LineCounts& counts = lines_.counts(static_cast<std::uint16_t>(i));
      if (counts.instructions == 0) continue;
      report_.lines.push_back(counts);
      report_.bank_conflicts += counts.conflicts;
      report_.shared_transactions += counts.transactions;
      report_.global_sectors += counts.sectors;
      report_.global_sectors_needed += counts.sectors_needed;
      if (counts.access == Access::kGlobalLoad || counts.access == Access::kGlobalStore) report_.global_bytes_requested += counts.bytes;
    }
    all_.merge(report_);
    return report_.clean();
  }

  // -- blocks ----------------------------------------------------------------------------------------------------
  bool run_block() {
    block_epoch_ = ++epoch_;
    waiting_at_barrier_ = 0;
    done_ = 0;
    ready_warps_ = 0;
    aborted_ = false;
    std::memset(shared_.data(), kPoison, shared_bytes_);
    std::memset(state_.data(), kNothingThere, shared_bytes_);
    for (int w = 0; w < (threads_ + 31) / 32; ++w) {
      Warp& warp = warps_[static_cast<std::size_t>(w)];
      const int lanes = threads_ - 32 * w;
      warp.existing = lanes >= 32 ? ~0u : (1u << lanes) - 1u;
      warp.ready = warp.existing;
      warp.waiting = 0;
      warp.epoch = 0;
      warp.partial = false;
      warp.clock.fill(0);
      warp.counter.drop();
      ready_warps_ |= 1u << w;
    }
    for (int i = 0; i < threads_; ++i) {
      Thread& t = thread(i);
      t.done = t.at_barrier = false;
      t.copies.clear();
      t.groups = 0;
      if (!t.started) {
        t.fiber.start(&Machine::entry);
        t.started = true;
      }
    }
    current_ = next();
    main_.switch_to(current_->fiber);
    current_ = nullptr;
    if (aborted_) {
      for (auto& t : fibers_) t->started = false;
      return false;
    }
    return true;
  }

  static void entry();

  void finish() {
    Thread& me = *current_;
    me.done = true;
    ++done_;
    set_ready(me, false);
    Warp& warp = warp_of(me);
    warp.existing &= ~(1u << (me.index % 32));
    if (warp.existing == 0) warp.counter.flush(lines_);
    if (waiting_at_barrier_ > 0 && waiting_at_barrier_ + done_ == threads_) release_barrier();
    if (done_ == threads_) {
      me.fiber.switch_to(main_);
    } else {
      leave();
    }
  }

  // -- schedule --------------------------------------------------------------------------------------------------
  Warp& warp_of(const Thread& t) { return warps_[static_cast<std::size_t>(t.index / 32)]; }

  void set_ready(const Thread& t, bool ready) {
    Warp& warp = warp_of(t);
    if (ready) {
      warp.ready |= 1u << (t.index % 32);
      ready_warps_ |= 1u << (t.index / 32);
    } else {
      warp.ready &= ~(1u << (t.index % 32));
      if (warp.ready == 0) ready_warps_ &= ~(1u << (t.index / 32));
    }
  }

  std::uint64_t random(std::uint64_t below) {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return (random_ >> 16) % below;
  }
  int random_bit(std::uint32_t bits) {
    for (auto n = random(static_cast<std::uint64_t>(__builtin_popcount(bits))); n > 0; --n) bits &= bits - 1;
    return __builtin_ctz(bits);
  }

  Thread* next() {
    if (ready_warps_ == 0) return nullptr;
    int warp;
    int lane;
    if (options.random_schedule) {
      warp = random_bit(ready_warps_);
      lane = random_bit(warps_[static_cast<std::size_t>(warp)].ready);
    } else {
      warp = current_ != nullptr ? current_->index / 32 : 0;
      if (warps_[static_cast<std::size_t>(warp)].ready == 0 || (ready_warps_ >> warp & 1u) == 0) warp = __builtin_ctz(ready_warps_);
      lane = __builtin_ctz(warps_[static_cast<std::size_t>(warp)].ready);
    }
    return fibers_[static_cast<std::size_t>(32 * warp + lane)].get();
  }

  /// Lets another thread run; returns when this one may go on.
  void leave() {
    Thread& me = *current_;
    Thread* to = next();
    if (to == &me) return;
    if (to == nullptr) {
      explain_deadlock();
      aborted_ = true;
      me.fiber.switch_to(main_);
    } else {
      current_ = to;
      me.fiber.switch_to(to->fiber);
    }
  }

  void release_barrier() {
    const Thread* first = nullptr;
    const Thread* gone = nullptr;
    for (int i = 0; i < threads_; ++i) {
      Thread& t = thread(i);
      if (t.done) {
        gone = &t;
        continue;
      }
      if (first == nullptr) first = &t;
      if (t.where.line != first->where.line) {
        find(Kind::kDivergence, first->where, [&] {
          return "barrier: " + name(*first) + " waits here, thread " + std::to_string(t.index) + " at " + at_line(t.where);
        });
      }
      t.at_barrier = false;
      set_ready(t, true);
    }
    if (gone != nullptr) {
      find(Kind::kDivergence, first->where, [&] {
        return "barrier: " + name(*first) + " waits, but thread " + std::to_string(gone->index) + " has left the kernel";
      });
    }
    waiting_at_barrier_ = 0;
    ++epoch_;
    for (int w = 0; w < (threads_ + 31) / 32; ++w) {
      Warp& warp = warps_[static_cast<std::size_t>(w)];
      warp.counter.flush(lines_);
      warp.partial = false;
      warp.clock.fill(0);
    }
  }

  bool same(Warp& warp, int w, std::uint32_t mask, const char* operation, Where where) {
    for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      const auto lane = static_cast<std::size_t>(__builtin_ctz(lanes));
      if (warp.mask[lane] != mask || warp.operation[lane] != operation) return false;
    }
    for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      const Thread& other = thread(32 * w + __builtin_ctz(lanes));
      if (other.where.line != where.line) {
        find(Kind::kDivergence, where, [&] {
          return std::string(operation) + ": " + name(*current_) + " calls it here, thread " + std::to_string(other.index) + " at " +
                 at_line(other.where);
        });
        break;
      }
    }
    return true;
  }

  void order(Warp& warp, std::uint32_t mask) {
    if (mask == warp.existing) {
      ++warp.epoch;
      if (warp.partial) {
        warp.partial = false;
        warp.clock.fill(0);
      }
      return;
    }
    if (!warp.partial) {
      warp.partial = true;
      for (auto& row : warp.known) row.fill(0);
    }
    std::array<std::uint16_t, 32> joined{};
    for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      const auto lane = static_cast<std::size_t>(__builtin_ctz(lanes));
      ++warp.clock[lane];
      warp.known[lane][lane] = warp.clock[lane];
      for (std::size_t i = 0; i < 32; ++i) joined[i] = std::max(joined[i], warp.known[lane][i]);
    }
    for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      warp.known[static_cast<std::size_t>(__builtin_ctz(lanes))] = joined;
    }
  }

  /// Nobody can go on: who waits for whom.
  void explain_deadlock() {
    for (int w = 0; w < (threads_ + 31) / 32; ++w) {
      Warp& warp = warps_[static_cast<std::size_t>(w)];
      for (std::uint32_t lanes = warp.waiting; lanes != 0; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        const auto at = static_cast<std::size_t>(lane);
        const Thread& waits = thread(32 * w + lane);
        const std::uint32_t mask = warp.mask[at];
        for (std::uint32_t missing = mask; missing != 0; missing &= missing - 1) {
          const int other = __builtin_ctz(missing);
          const auto o = static_cast<std::size_t>(other);
          const bool waiting = (warp.waiting >> other & 1u) != 0;
          if (waiting && warp.mask[o] == mask && warp.operation[o] == warp.operation[at]) continue;
          find(Kind::kMask, waits.where, [&] {
            std::string text = std::string(warp.operation[at]) + ": " + name(waits) + " waits with mask " + hex(mask) + " for lane " +
                               std::to_string(other) + ", which ";
            if (32 * w + other >= threads_) return text + "the block does not have";
            const Thread& t = thread(32 * w + other);
            if (t.done) return text + "has left the kernel";
            if (t.at_barrier) return text + "waits at the barrier at " + at_line(t.where);
            return text + "waits for " + warp.operation[o] + " with mask " + hex(warp.mask[o]) + " at " + at_line(t.where);
          });
          break;
        }
      }
    }
    for (int i = 0; i < threads_ && waiting_at_barrier_ > 0; ++i) {
      const Thread& t = thread(i);
      if (!t.at_barrier) continue;
      for (int j = 0; j < threads_; ++j) {
        const Thread& other = thread(j);
        if (other.at_barrier || other.done) continue;
        find(Kind::kDivergence, t.where, [&] {
          return "barrier: " + name(t) + " waits, but thread " + std::to_string(j) + " waits at " + at_line(other.where);
        });
        break;
      }
    }
  }

  // -- memory ----------------------------------------------------------------------------------------------------
  Moment moment(const Thread& t) {
    const Warp& warp = warp_of(t);
    const auto lane = static_cast<std::size_t>(t.index % 32);
    Moment now;
    now.launch_epoch = launch_epoch_;
    now.block_epoch = block_epoch_;
    now.epoch = epoch_;
    now.warp_epoch = warp.epoch;
    now.thread = static_cast<std::uint16_t>(t.index);
    now.clock = warp.clock[lane];
    now.known = warp.partial ? warp.known[lane].data() : nullptr;
    return now;
  }

  /// Shared memory has no past before the block.
  Moment shared_moment(const Thread& t) {
    Moment now = moment(t);
    now.launch_epoch = block_epoch_;
    return now;
  }

  bool shared_place(Thread& by, std::int64_t offset, std::size_t size, std::uint16_t line, Where where) {
    if (offset < 0 || static_cast<std::uint64_t>(offset) + size > shared_bytes_) {
      find(Kind::kBounds, where, [&] {
        return name(by) + " touches shared memory at bytes " + std::to_string(offset) + " … " +
               std::to_string(offset + static_cast<std::int64_t>(size) - 1) + " of " + std::to_string(shared_bytes_);
      });
      return false;
    }
    if (static_cast<std::size_t>(offset) % size != 0) {
      find(Kind::kAlignment, where, [&] {
        return name(by) + " moves " + std::to_string(size) + " bytes at byte " + std::to_string(offset) + " of shared memory";
      });
    }
    if (options.count_accesses) {
      warp_of(by).counter.add(line, by.index % 32, static_cast<std::uint64_t>(offset), size);
    }
    return true;
  }

  Region* global_place(Thread& by, std::uintptr_t address, std::size_t size, Where where, const char* what) {
    Region* region = registry().find(address, size);
    if (region == nullptr) {
      find(Kind::kBounds, where, [&] {
        return name(by) + " " + what + " " + std::to_string(size) + " bytes: " + registry().describe(address);
      });
      return nullptr;
    }
    if (address % size != 0) {
      find(Kind::kAlignment, where, [&] {
        return name(by) + " " + what + " " + std::to_string(size) + " bytes, " + place(*region, address - region->begin) +
               ", at an address that is no multiple of that";
      });
    }
    if (options.check_races && region->shadow.empty()) region->shadow.resize(region->size);
    return region;
  }

  void shared_written(Thread& by, std::size_t at, std::size_t size, std::uint16_t line, Where where) {
    if (!options.check_races) return;
    const Clash clash = shared_shadow_.write(at, size, shared_moment(by), line);
    if (clash.with != Clash::With::kNothing) report_clash(by, clash, "writes shared memory at byte " + std::to_string(at), where);
  }

  void check_pending(Thread& by, std::size_t at, std::size_t size, Where where, const char* what) {
    if (std::memchr(state_.data() + at, kPending, size) == nullptr) return;
    find(Kind::kAsync, where, [&] {
      std::string text = name(by) + ": bytes " + std::to_string(at) + " … " + std::to_string(at + size - 1) + " are " + what +
                         " before the thread that asked for them by cp.async has waited";
      for (int i = 0; i < threads_; ++i) {
        for (const AsyncCopy& copy : thread(i).copies) {
          if (static_cast<std::size_t>(copy.offset) < at + size && at < static_cast<std::size_t>(copy.offset) + 16) {
            return text + ": thread " + std::to_string(i) + " at " + at_line(copy.where);
          }
        }
      }
      return text;
    });
  }

  void check_state(Thread& by, std::size_t at, std::size_t size, Where where, const char* what) {
    unsigned char all = kWritten;
    for (std::size_t i = 0; i < size; ++i) {
      if (state_[at + i] != kWritten) all = state_[at + i];
    }
    if (all == kWritten) return;
    check_pending(by, at, size, where, what);
    if (std::memchr(state_.data() + at, kNothingThere, size) != nullptr) {
      find(Kind::kUninitialised, where, [&] {
        return name(by) + " reads bytes " + std::to_string(at) + " … " + std::to_string(at + size - 1) +
               " of shared memory, to which nothing was stored";
      });
    }
  }

  void (*body_)(const void*) = nullptr;
  const void* args_ = nullptr;
  int threads_ = 0;
  Fiber main_;
  std::vector<std::unique_ptr<Thread>> fibers_;
  std::array<Warp, 32> warps_;
  Thread* current_ = nullptr;
  std::uint32_t ready_warps_ = 0;
  int waiting_at_barrier_ = 0;
  int done_ = 0;
  bool aborted_ = false;
  std::uint64_t random_ = 0;

  std::uint32_t epoch_ = 0;
  std::uint32_t launch_epoch_ = 0;
  std::uint32_t block_epoch_ = 0;
  std::vector<unsigned char> shared_;
  std::vector<unsigned char> state_;
  std::size_t shared_bytes_ = 0;
  Shadow shared_shadow_;

  LineTable lines_;
  Report report_;
  Report all_;
  std::unordered_map<std::uint64_t, std::size_t> places_of_findings_;
};

inline Machine the_machine;

inline void Machine::entry() {
  for (;;) {
    the_machine.body_(the_machine.args_);
    the_machine.finish();
  }
}

}  // namespace peft_emulator
