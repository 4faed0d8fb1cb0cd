#pragma once
/// Who runs the parallel parts: threads belong to the host. An executor is anything with
///   parallel_for(Index count, void (*task)(void* context, Index index), void* context)
/// that calls task(context, i) once for every i in [0, count), in any order, on any threads, and returns when all are
/// done. Tasks never throw. Work is cut by shape, never by the executor's width, so results do not depend on it.

#include <concepts>
#include <memory>
#include <type_traits>

#include "peft/core/scalar.hpp"

PEFT_BEGIN_NAMESPACE

/// One call of a parallel loop.
using TaskFunction = void (*)(void* context, Index index);

template <class E>
concept Executor = requires(E& executor, Index count, TaskFunction task, void* context) {
  executor.parallel_for(count, task, context);
  { executor.concurrency() } -> std::convertible_to<int>;
};

/// Runs every task on the calling thread, in order.
class SerialExecutor {
 public:
  void parallel_for(Index count, TaskFunction task, void* context) const {
    for (Index i = 0; i < count; ++i) task(context, i);
  }
  int concurrency() const noexcept { return 1; }
};

/// A reference to any executor: two pointers and a function, no allocation. A default-made one is serial. The executor
/// it refers to must outlive it.
class ExecutorRef {
 public:
  ExecutorRef() noexcept = default;
  template <Executor E>
    requires(!std::same_as<std::remove_cvref_t<E>, ExecutorRef>)
  ExecutorRef(E& executor) noexcept  // NOLINT(google-explicit-constructor): made to be passed an executor
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(executor)))),
        run_([](void* object, Index count, TaskFunction task, void* context) {
          static_cast<E*>(object)->parallel_for(count, task, context);
        }),
        width_([](void* object) -> int { return static_cast<E*>(object)->concurrency(); }) {}

  void parallel_for(Index count, TaskFunction task, void* context) const {
    if (run_ != nullptr && count > 1) {
      run_(object_, count, task, context);
    } else {
      for (Index i = 0; i < count; ++i) task(context, i);
    }
  }
  /// How many tasks may run at once: a hint for scratch memory, never for cutting work.
  int concurrency() const { return width_ != nullptr ? width_(object_) : 1; }

 private:
  void* object_ = nullptr;
  void (*run_)(void*, Index, TaskFunction, void*) = nullptr;
  int (*width_)(void*) = nullptr;
};

/// Runs body(i) for every i in [0, count). `body` must not throw.
template <class Body>
void parallel_for(ExecutorRef executor, Index count, Body&& body) {
  using Decayed = std::remove_reference_t<Body>;
  executor.parallel_for(
      count, [](void* context, Index i) { (*static_cast<Decayed*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

/// Runs body(first, last) over [0, count) cut into runs of `grain`: the cut depends on the shape only.
template <class Body>
void parallel_for_ranges(ExecutorRef executor, Index count, Index grain, Body&& body) {
  const Index step = grain > 0 ? grain : 1;
  parallel_for(executor, (count + step - 1) / step, [&](Index chunk) {
    const Index first = chunk * step;
    const Index last = first + step < count ? first + step : count;
    body(first, last);
  });
}

PEFT_END_NAMESPACE
