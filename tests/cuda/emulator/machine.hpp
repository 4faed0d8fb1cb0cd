#pragma once
/// The emulated device: runs a launch block by block, each thread of a block a fiber that goes on until it waits for others.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "access_counter.hpp"
#include "device_memory.hpp"
#include "fiber.hpp"
#include "finding_log.hpp"
#include "options.hpp"
#include "report.hpp"
#include "warp_clock.hpp"

namespace peft_emulator {

class Machine {
 private:
  FindingLog log_;

 public:
  struct Thread {
    Fiber fiber;
    int index = 0;
    bool started = false;
    bool done = false;
    bool at_barrier = false;
    Where where{"", 0};  // of what it waits for
  };
  /// Sets of lanes, and what those that wait for other lanes have asked for.
  struct Warp {
    std::uint32_t existing = 0;
    std::uint32_t ready = 0;
    std::uint32_t waiting = 0;
    std::array<std::uint32_t, 32> mask{};
    std::array<const char*, 32> operation{};
    std::array<void*, 32> payload{};
    WarpClock clock;
    AccessCounter counter;
  };
  /// What happens when all lanes have met: `warp` is its number in the block.
  using Execute = void (*)(Machine&, const Warp&, int warp, std::uint32_t mask);

  Options options;
  std::array<int, 3> block{};
  std::array<int, 3> grid{};
  DeviceMemory memory{log_, options};

  int thread_index() const { return current_->index; }
  int threads() const { return threads_; }
  Asker asker() { return asker(current_->index); }
  Asker asker(int thread) {
    Warp& warp = warps_[static_cast<std::size_t>(thread / 32)];
    Asker by;
    by.now.launch_epoch = launch_epoch_;
    by.now.block_epoch = block_epoch_;
    by.now.epoch = epoch_;
    by.now.thread = static_cast<std::uint16_t>(thread);
    warp.clock.stamp(by.now, static_cast<std::size_t>(thread % 32));
    by.block = block;
    by.counter = &warp.counter;
    return by;
  }

  // -- launches --------------------------------------------------------------------------------------------------
  const Report& last() const { return log_.report(); }
  Report& all() { return all_; }

  /// False where anything was found.
  bool run(std::array<int, 3> blocks, int threads, int shared_bytes, void (*body)(const void*), const void* args,
           Where where) {
    log_.open();
    if (blocks[1] > 65535 || blocks[2] > 65535 || threads > 1024 || shared_bytes > options.most_shared_bytes) {
      log_.find(Kind::kLaunch, where, [&] {
        return std::to_string(blocks[1]) + " and " + std::to_string(blocks[2]) + " blocks in y and z, of 65535; " +
               std::to_string(threads) + " threads, of 1024; " + std::to_string(shared_bytes) + " bytes of shared memory, of " +
               std::to_string(options.most_shared_bytes);
      });
    } else {
      grid = blocks;
      threads_ = threads;
      body_ = body;
      args_ = args;
      random_ = options.seed * 0x9E3779B97F4A7C15u + 0x1234567u;
      launch_epoch_ = ++epoch_;
      while (fibers_.size() < static_cast<std::size_t>(threads)) {
        fibers_.push_back(std::make_unique<Thread>());
        fibers_.back()->index = static_cast<int>(fibers_.size()) - 1;
      }
      run_blocks(static_cast<std::size_t>(shared_bytes));
    }
    all_.merge(log_.close());
    return last().clean();
  }

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
  /// payloads of all point to. At once, without that, where the mask does not name the caller.
  void meet(const char* operation, Execute execute, std::uint32_t mask, void* payload, Where where,
            bool orders_memory = false) {
    Thread& me = *current_;
    const int w = me.index / 32;
    const int lane = me.index % 32;
    if ((mask >> lane & 1u) == 0) {
      log_.find(Kind::kMask, where, [&] {
        return std::string(operation) + ": " + asker().name() + " calls it with mask " + hex(mask) +
               ", which leaves its lane out";
      });
      return;
    }
    Warp& warp = warps_[static_cast<std::size_t>(w)];
    const auto at = static_cast<std::size_t>(lane);
    warp.mask[at] = mask;
    warp.operation[at] = operation;
    warp.payload[at] = payload;
    warp.waiting |= 1u << lane;
    me.where = where;
    set_ready(me, false);
    if (have_met(warp, mask, operation)) {
      check_lines(w, mask, operation, where);
      if (execute != nullptr) execute(*this, warp, w, mask);
      warp.waiting &= ~mask;
      warp.ready |= mask;
      ready_warps_ |= 1u << w;
      const bool all = mask == warp.existing;
      if (orders_memory) warp.clock.meet(mask, all);
      if (all) warp.counter.flush(log_.lines);
    }
    leave();
  }

  /// A shuffle that reads from a lane which the mask does not name.
  void read_stranger(const char* operation, std::uint32_t mask, int source, Where where) {
    log_.find(Kind::kMask, where, [&] {
      return std::string(operation) + ": " + asker().name() + " reads lane " + std::to_string(source) + ", which mask " +
             hex(mask) + " leaves out";
    });
  }

 private:
  // -- blocks ----------------------------------------------------------------------------------------------------
  void run_blocks(std::size_t shared_bytes) {
    const std::int64_t count = static_cast<std::int64_t>(grid[0]) * grid[1] * grid[2];
    std::vector<std::int64_t> order(options.random_schedule ? static_cast<std::size_t>(count) : 0);
    for (std::size_t i = 0; i < order.size(); ++i) {
      order[i] = static_cast<std::int64_t>(i);
      std::swap(order[i], order[static_cast<std::size_t>(random(i + 1))]);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t which = order.empty() ? i : order[static_cast<std::size_t>(i)];
      block = {static_cast<int>(which % grid[0]), static_cast<int>(which / grid[0] % grid[1]),
               static_cast<int>(which / grid[0] / grid[1])};
      memory.start_block(shared_bytes, threads_);
      if (!run_block()) break;
    }
  }

  /// False where its threads wait for each other for ever.
  bool run_block() {
    block_epoch_ = ++epoch_;
    waiting_at_barrier_ = 0;
    done_ = 0;
    ready_warps_ = 0;
    stuck_ = false;
    for (int w = 0; w < warp_count(); ++w) {
      Warp& warp = warps_[static_cast<std::size_t>(w)];
      const int lanes = threads_ - 32 * w;
      warp.existing = lanes >= 32 ? ~0u : (1u << lanes) - 1u;
      warp.ready = warp.existing;
      warp.waiting = 0;
      warp.clock.restart();
      warp.counter.drop();
      ready_warps_ |= 1u << w;
    }
    for (int i = 0; i < threads_; ++i) {
      Thread& t = thread(i);
      t.done = t.at_barrier = false;
      if (!t.started) t.fiber.start(&Machine::enter);
      t.started = true;
    }
    current_ = next();
    main_.switch_to(current_->fiber);
    current_ = nullptr;
    if (!stuck_) return true;
    for (auto& t : fibers_) t->started = false;
    return false;
  }

  /// A fiber runs the kernel once per block.
  static void enter();
  void finish() {
    Thread& me = *current_;
    me.done = true;
    ++done_;
    set_ready(me, false);
    Warp& warp = warps_[static_cast<std::size_t>(me.index / 32)];
    warp.existing &= ~(1u << (me.index % 32));
    if (warp.existing == 0) warp.counter.flush(log_.lines);
    if (waiting_at_barrier_ > 0 && waiting_at_barrier_ + done_ == threads_) release_barrier();
    if (done_ == threads_) {
      me.fiber.switch_to(main_);
    } else {
      leave();
    }
  }

  // -- schedule --------------------------------------------------------------------------------------------------
  int warp_count() const { return (threads_ + 31) / 32; }
  Thread& thread(int index) { return *fibers_[static_cast<std::size_t>(index)]; }

  void set_ready(const Thread& t, bool ready) {
    std::uint32_t& lanes = warps_[static_cast<std::size_t>(t.index / 32)].ready;
    lanes = ready ? lanes | 1u << (t.index % 32) : lanes & ~(1u << (t.index % 32));
    ready_warps_ = lanes != 0 ? ready_warps_ | 1u << (t.index / 32) : ready_warps_ & ~(1u << (t.index / 32));
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

  /// The thread to go on with, of this warp if there is one; null where all wait.
  Thread* next() {
    if (ready_warps_ == 0) return nullptr;
    int warp = 0;
    if (options.random_schedule) {
      warp = random_bit(ready_warps_);
    } else {
      if (current_ != nullptr) warp = current_->index / 32;
      if ((ready_warps_ >> warp & 1u) == 0) warp = __builtin_ctz(ready_warps_);
    }
    const std::uint32_t lanes = warps_[static_cast<std::size_t>(warp)].ready;
    return &thread(32 * warp + (options.random_schedule ? random_bit(lanes) : __builtin_ctz(lanes)));
  }

  /// Lets another thread run; returns when this one may go on.
  void leave() {
    Thread& me = *current_;
    Thread* to = next();
    if (to == &me) return;
    if (to != nullptr) {
      current_ = to;
      me.fiber.switch_to(to->fiber);
    } else {
      explain_stuck();
      stuck_ = true;
      me.fiber.switch_to(main_);
    }
  }

  // -- who waits for whom ----------------------------------------------------------------------------------------
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
        log_.find(Kind::kDivergence, first->where, [&] {
          return "barrier: " + asker(first->index).name() + " waits here, thread " + std::to_string(t.index) + " at " +
                 text_of(t.where);
        });
      }
      t.at_barrier = false;
      set_ready(t, true);
    }
    if (gone != nullptr) {
      log_.find(Kind::kDivergence, first->where, [&] {
        return "barrier: " + asker(first->index).name() + " waits, but thread " + std::to_string(gone->index) +
               " has left the kernel";
      });
    }
    waiting_at_barrier_ = 0;
    ++epoch_;
    for (int w = 0; w < warp_count(); ++w) {
      warps_[static_cast<std::size_t>(w)].counter.flush(log_.lines);
      warps_[static_cast<std::size_t>(w)].clock.forget();
    }
  }

  static bool have_met(const Warp& warp, std::uint32_t mask, const char* operation) {
    if ((warp.waiting & mask) != mask) return false;
    for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      const auto lane = static_cast<std::size_t>(__builtin_ctz(lanes));
      if (warp.mask[lane] != mask || warp.operation[lane] != operation) return false;
    }
    return true;
  }

  void check_lines(int w, std::uint32_t mask, const char* operation, Where where) {
    for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      const Thread& other = thread(32 * w + __builtin_ctz(lanes));
      if (other.where.line == where.line) continue;
      log_.find(Kind::kDivergence, where, [&] {
        return std::string(operation) + ": " + asker().name() + " calls it here, thread " + std::to_string(other.index) +
               " at " + text_of(other.where);
      });
    }
  }

  std::string whereabouts(int index) {
    if (index >= threads_) return "the block does not have";
    const Thread& t = thread(index);
    if (t.done) return "has left the kernel";
    if (t.at_barrier) return "waits at the barrier at " + text_of(t.where);
    const Warp& warp = warps_[static_cast<std::size_t>(index / 32)];
    const auto lane = static_cast<std::size_t>(index % 32);
    return std::string("waits for ") + warp.operation[lane] + " with mask " + hex(warp.mask[lane]) + " at " + text_of(t.where);
  }

  /// Nobody can go on.
  void explain_stuck() {
    for (int i = 0; i < threads_; ++i) {
      const Thread& t = thread(i);
      if (t.done) continue;
      if (t.at_barrier) {
        for (int j = 0; j < threads_; ++j) {
          if (thread(j).at_barrier || thread(j).done) continue;
          log_.find(Kind::kDivergence, t.where, [&] {
            return "barrier: " + asker(i).name() + " waits, but thread " + std::to_string(j) + " " + whereabouts(j);
          });
          break;
        }
        continue;
      }
      const Warp& warp = warps_[static_cast<std::size_t>(i / 32)];
      const auto lane = static_cast<std::size_t>(i % 32);
      for (std::uint32_t missing = warp.mask[lane]; missing != 0; missing &= missing - 1) {
        const auto other = static_cast<std::size_t>(__builtin_ctz(missing));
        const bool waits = (warp.waiting >> other & 1u) != 0;
        if (waits && warp.mask[other] == warp.mask[lane] && warp.operation[other] == warp.operation[lane]) continue;
        log_.find(Kind::kMask, t.where, [&] {
          return std::string(warp.operation[lane]) + ": " + asker(i).name() + " waits with mask " + hex(warp.mask[lane]) +
                 " for lane " + std::to_string(other) + ", which " + whereabouts(i / 32 * 32 + static_cast<int>(other));
        });
        break;
      }
    }
  }

  Report all_;
  Fiber main_;
  std::vector<std::unique_ptr<Thread>> fibers_;
  std::array<Warp, 32> warps_;
  void (*body_)(const void*) = nullptr;
  const void* args_ = nullptr;
  int threads_ = 0;
  Thread* current_ = nullptr;
  std::uint32_t ready_warps_ = 0;
  int waiting_at_barrier_ = 0;
  int done_ = 0;
  bool stuck_ = false;
  std::uint64_t random_ = 0;
  // Counted over all launches, by the block's barriers too: what is from before is never from now.
  std::uint32_t epoch_ = 0;
  std::uint32_t launch_epoch_ = 0;
  std::uint32_t block_epoch_ = 0;
};

inline Machine the_machine;

inline void Machine::enter() {
  for (;;) {
    the_machine.body_(the_machine.args_);
    the_machine.finish();
  }
}

}  // namespace peft_emulator
