#pragma once
/// The executor that is used where none is named: one pool per process, replaceable.

#include <atomic>

#include "peft/core/executor.hpp"
#include "peft/core/thread_pool.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

inline std::atomic<const ExecutorRef*>& default_executor_override() noexcept {
  static constinit std::atomic<const ExecutorRef*> value{nullptr};
  return value;
}

/// Owns the process's pool and says, without a destructor of its own flag, whether it still lives.
struct DefaultPool {
  ThreadPool pool;
  DefaultPool() noexcept { alive().store(true, std::memory_order_release); }
  ~DefaultPool() { alive().store(false, std::memory_order_release); }
  static std::atomic<bool>& alive() noexcept {
    static constinit std::atomic<bool> value{false};
    return value;
  }
  static ThreadPool& instance() noexcept {
    static DefaultPool holder;
    return holder.pool;
  }
};

}  // namespace detail

/// The executor of every entry point that is called without one: the process's pool unless replaced. While static
/// objects are destroyed, after the pool is gone, it is serial.
inline ExecutorRef default_executor() noexcept {
  if (const ExecutorRef* chosen = detail::default_executor_override().load(std::memory_order_acquire)) return *chosen;
  ThreadPool& pool = detail::DefaultPool::instance();
  return detail::DefaultPool::alive().load(std::memory_order_acquire) ? ExecutorRef(pool) : ExecutorRef();
}

/// Replaces the default executor for the whole process; nullptr brings the pool back. `executor` must outlive its use.
inline void set_default_executor(const ExecutorRef* executor) noexcept {
  detail::default_executor_override().store(executor, std::memory_order_release);
}

PEFT_END_NAMESPACE
