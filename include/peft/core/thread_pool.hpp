#pragma once
/// The library's own executor. Workers start on first use, spin briefly for the next loop and then park; a loop begun
/// from inside a worker, or while another thread's loop runs, is done by its caller alone; a forked child starts its
/// own workers; destroyed pools run serially. Every thread has its own run of the tasks, the same from loop to loop:
/// rows that it wrote in one loop it reads in the next, from its own cache. When its run is done it helps the others.

#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "peft/core/executor.hpp"

PEFT_BEGIN_NAMESPACE

/// A fixed set of worker threads behind the executor concept. Safe to call from any number of threads.
class ThreadPool {
 public:
  /// `threads`: how many run a loop together, the caller among them; 0 asks the machine (see default_threads()).
  explicit ThreadPool(int threads = 0) noexcept : width_(threads > 0 ? threads : default_threads()) {}
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { stop(); }

  int concurrency() const noexcept { return width_; }

  void parallel_for(Index count, TaskFunction task, void* context) {
    if (count <= 1 || width_ <= 1 || inside_worker() || submitting_.test_and_set(std::memory_order_acquire)) {
      for (Index i = 0; i < count; ++i) task(context, i);
      return;
    }
    const Submission submission{submitting_};
    if (!ensure_started()) {
      for (Index i = 0; i < count; ++i) task(context, i);
      return;
    }
    task_ = task;
    context_ = context;
    for (int i = 0; i < width_; ++i) {
      shares_[i].next.store(count * i / width_, std::memory_order_relaxed);
      shares_[i].last = count * (i + 1) / width_;
    }
    gate_.store(0, std::memory_order_release);  // open: workers may join
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.notify_all();
    inside_worker() = true;
    run_tasks(0);
    inside_worker() = false;
    gate_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (int spin = 0; (gate_.load(std::memory_order_acquire) & ~kClosed) != 0; ++spin) {
      if (spin < kSpins) {
        relax();
      } else {
        sched_yield();
      }
    }
  }

  /// PEFT_NUM_THREADS, else the processors that this process may run on.
  static int default_threads() noexcept {
    if (const char* text = std::getenv("PEFT_NUM_THREADS")) {
      const int asked = std::atoi(text);
      if (asked > 0) return asked < kMostThreads ? asked : kMostThreads;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
      const int found = CPU_COUNT(&set);
      if (found > 0) return found < kMostThreads ? found : kMostThreads;
    }
    return 1;
  }

 private:
  static constexpr int kMostThreads = 512;
  static constexpr std::uint64_t kClosed = std::uint64_t{1} << 63;
  // Pauses (some 20 to 60 ns each) before a waiting thread offers its processor to others at every look.
  static constexpr int kSpins = 1000;
  // How long a worker looks for the next loop before it parks. Waking a parked thread costs 50 to 400 µs where its
  // processor has gone idle (a virtual machine's above all), more than most loops of a training step: so the time spans
  // the serial stretches between two loops, and the other threads' last tasks.
  static constexpr std::int64_t kParkAfterNanoseconds = 2'000'000;

  static bool& inside_worker() noexcept {
    static thread_local bool value = false;
    return value;
  }

  static void relax() noexcept {
#if PEFT_X86_64
    __builtin_ia32_pause();
#endif
  }

  /// One loop at a time; a flag and not a mutex, whose header is a tenth of a second of every translation unit.
  struct Submission {
    std::atomic_flag& flag;
    ~Submission() { flag.clear(std::memory_order_release); }
  };

  /// The tasks of one thread: `next` may run past `last`.
  struct alignas(64) Share {
    std::atomic<Index> next;
    Index last;
  };

  /// The calling thread's own share (`me`), then what is left of the others'.
  void run_tasks(int me) noexcept {
    const TaskFunction task = task_;
    void* const context = context_;
    for (int i = 0; i < width_; ++i) {
      Share& share = shares_[(me + i) % width_];
      const Index last = share.last;
      for (Index at = share.next.fetch_add(1, std::memory_order_relaxed); at < last;
           at = share.next.fetch_add(1, std::memory_order_relaxed)) {
        task(context, at);
      }
    }
  }

  /// The epoch once it is another than `seen`, or `seen` after kParkAfterNanoseconds.
  std::uint32_t await_epoch_after(std::uint32_t seen) const noexcept {
    std::uint32_t now = epoch_.load(std::memory_order_acquire);
    for (int spin = 0; now == seen && spin < kSpins; ++spin) {
      relax();
      now = epoch_.load(std::memory_order_acquire);
    }
    if (now != seen) return now;
    for (const std::int64_t start = nanoseconds(); now == seen && nanoseconds() - start < kParkAfterNanoseconds;) {
      sched_yield();
      now = epoch_.load(std::memory_order_acquire);
    }
    return now;
  }

  static std::int64_t nanoseconds() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
  }

  void work() noexcept {
    const int me = 1 + numbered_.fetch_add(1, std::memory_order_relaxed);
    inside_worker() = true;
    std::uint32_t seen = 0;
    while (true) {
      const std::uint32_t now = await_epoch_after(seen);
      if (now == seen) {
        epoch_.wait(seen, std::memory_order_acquire);
        continue;
      }
      seen = now;
      if (stopping_.load(std::memory_order_acquire)) return;
      std::uint64_t gate = gate_.load(std::memory_order_acquire);
      while ((gate & kClosed) == 0) {
        // A late worker finds the gate closed and waits for the next loop; one that joins is waited for.
        if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
          run_tasks(me);
          gate_.fetch_sub(1, std::memory_order_acq_rel);
          break;
        }
      }
    }
  }

  bool ensure_started() noexcept {
    const pid_t me = getpid();
    if (owner_ == me) return started_ > 0;
    // First use, or a fork's child: the parent's workers do not exist here.
    owner_ = me;
    started_ = 0;
    gate_.store(kClosed, std::memory_order_relaxed);
    epoch_.store(0, std::memory_order_relaxed);
    numbered_.store(0, std::memory_order_relaxed);
    const auto width = static_cast<std::size_t>(width_);
    if (threads_ == nullptr) threads_ = static_cast<pthread_t*>(std::malloc(sizeof(pthread_t) * width));
    if (shares_ == nullptr) shares_ = static_cast<Share*>(std::aligned_alloc(alignof(Share), sizeof(Share) * width));
    if (threads_ == nullptr || shares_ == nullptr) return false;
    for (std::size_t i = 0; i < width; ++i) new (&shares_[i]) Share{};
    for (int i = 0; i + 1 < width_; ++i) {
      if (pthread_create(
              &threads_[started_], nullptr,
              [](void* self) -> void* {
                static_cast<ThreadPool*>(self)->work();
                return nullptr;
              },
              this) != 0) {
        break;  // fewer threads than asked: slower, never wrong
      }
      ++started_;
    }
    return started_ > 0;
  }

  void stop() noexcept {
    if (owner_ == getpid() && started_ > 0) {
      stopping_.store(true, std::memory_order_release);
      epoch_.fetch_add(1, std::memory_order_seq_cst);
      epoch_.notify_all();
      for (int i = 0; i < started_; ++i) pthread_join(threads_[i], nullptr);
    }
    std::free(threads_);
    std::free(shares_);
    threads_ = nullptr;
    shares_ = nullptr;
    started_ = 0;
    width_ = 1;
  }

  int width_;
  std::atomic_flag submitting_ = ATOMIC_FLAG_INIT;
  pid_t owner_ = -1;
  pthread_t* threads_ = nullptr;
  int started_ = 0;
  TaskFunction task_ = nullptr;
  void* context_ = nullptr;
  Share* shares_ = nullptr;  ///< [width_]
  std::atomic<int> numbered_{0};
  alignas(64) std::atomic<std::uint64_t> gate_{kClosed};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  std::atomic<bool> stopping_{false};
};

PEFT_END_NAMESPACE
