#pragma once
/// One fiber: a stack of its own and the place where it goes on. Switching costs a few nanoseconds on x86-64 (six registers
/// saved; ucontext elsewhere). AddressSanitizer is told of every switch.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#define PEFT_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PEFT_EMULATOR_ASAN 1
#endif
#endif
#if !defined(PEFT_EMULATOR_ASAN)
#define PEFT_EMULATOR_ASAN 0
#endif
#if PEFT_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && defined(__ELF__) && !defined(PEFT_EMULATOR_UCONTEXT)
extern "C" void peft_emulator_switch(void** from, void* to);
// Weak and in a group of its own: several translation units may hold it.
__asm__(
    ".pushsection .text.peft_emulator_switch,\"axG\",@progbits,peft_emulator_switch,comdat\n"
    ".weak peft_emulator_switch\n"
    ".type peft_emulator_switch,@function\n"
    "peft_emulator_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size peft_emulator_switch,.-peft_emulator_switch\n"
    ".popsection\n");
#define PEFT_EMULATOR_SWITCH 1
#else
#include <ucontext.h>
#define PEFT_EMULATOR_SWITCH 0
#endif

namespace peft_emulator {

class Fiber {
 public:
  /// Of the thread that calls run(): its stack is there already.
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (mapping_ != nullptr) ::munmap(mapping_, mapped_);
  }

  /// The next switch to this fiber calls entry, which never returns. What the fiber was in the middle of is dropped.
  void start(void (*entry)()) {
    if (mapping_ == nullptr) {
      const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
      mapped_ = kStackBytes + page;
      void* mapping = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapping == MAP_FAILED || ::mprotect(mapping, page, PROT_NONE) != 0) {
        std::fputs("peft_emulator: no memory for a fiber's stack\n", stderr);
        std::abort();
      }
      mapping_ = mapping;
      bottom_ = static_cast<char*>(mapping) + page;
      size_ = kStackBytes;
    }
#if PEFT_EMULATOR_ASAN
    __asan_unpoison_memory_region(bottom_, size_);
    fake_stack_ = nullptr;
#endif
    entry_ = entry;
#if PEFT_EMULATOR_SWITCH
    // As if entered() had been called: its return address is 0, and the stack is 8 off a multiple of 16. Fibers start at
    // different places of a page: what they all use would stand in a few sets of the cache.
    static std::size_t started = 0;
    const std::size_t shift = started++ % 13 * 320;
    auto* top = reinterpret_cast<std::uint64_t*>(static_cast<char*>(const_cast<void*>(bottom_)) + size_ - shift);
    *--top = 0;
    *--top = reinterpret_cast<std::uint64_t>(&Fiber::entered);
    for (int i = 0; i < 6; ++i) *--top = 0;
    stack_pointer_ = top;
#else
    ::getcontext(&context_);
    context_.uc_stack.ss_sp = const_cast<void*>(bottom_);
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    ::makecontext(&context_, &Fiber::entered, 0);
#endif
  }

  /// Leaves this fiber, which is the one running, for another; returns when somebody switches back.
  void switch_to(Fiber& other) {
    previous_ = this;
    running_ = &other;
#if PEFT_EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.size_);
#endif
#if PEFT_EMULATOR_SWITCH
    peft_emulator_switch(&stack_pointer_, other.stack_pointer_);
#else
    ::swapcontext(&context_, &other.context_);
#endif
    arrived(fake_stack_);
  }

 private:
#if PEFT_EMULATOR_ASAN
  static constexpr std::size_t kStackBytes = 512 * 1024;
#else
  static constexpr std::size_t kStackBytes = 128 * 1024;
#endif

  static void arrived([[maybe_unused]] void* fake_stack) {
#if PEFT_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, &previous_->bottom_, &previous_->size_);
#endif
  }
  static void entered() {
    arrived(nullptr);
    running_->entry_();
    std::abort();
  }

  inline static Fiber* previous_ = nullptr;
  inline static Fiber* running_ = nullptr;

  void* mapping_ = nullptr;
  std::size_t mapped_ = 0;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void (*entry_)() = nullptr;
#if PEFT_EMULATOR_SWITCH
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
};

}  // namespace peft_emulator
