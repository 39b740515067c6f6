// A stack of its own and the switch between two: some 20 instructions on x86-64 (ucontext costs two
// system calls a switch), ucontext elsewhere or with MVNROB_SHIM_UCONTEXT.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "shim/sanitizers.h"

#if !defined(__x86_64__) && !defined(MVNROB_SHIM_UCONTEXT)
#define MVNROB_SHIM_UCONTEXT
#endif
#ifdef MVNROB_SHIM_UCONTEXT
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace mvnrob::shim {

// Room for a body with large local arrays and for the sanitizer's red zones. Only touched pages
// take memory.
constexpr size_t kStackBytes = 256 * 1024;

#ifndef MVNROB_SHIM_UCONTEXT
// Saves what the calling convention asks a callee to keep, then continues where `load` was saved.
__attribute__((naked, noinline)) inline void switch_stack(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
      "ret\n");
}
#endif

// Never destroyed: whoever makes one with a stack keeps it until the process ends.
class Fiber {
 public:
  // The stack of the caller, to come back to.
  Fiber() {
#ifdef __SANITIZE_THREAD__
    tsan_ = __tsan_get_current_fiber();
#endif
  }

  // A new stack on which entry will run; entry never returns. Stacks lie a multiple of the page
  // size apart; `index` staggers their tops, else all of them share the same few cache lines.
  Fiber(void (*entry)(), unsigned index) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);  // an overflowing stack faults
    char* bottom = static_cast<char*>(memory) + page;
    bottom_ = bottom;
    size_ = kStackBytes - index % 32 * 128;
#ifdef __SANITIZE_THREAD__
    tsan_ = __tsan_create_fiber(0);
#endif
#ifdef MVNROB_SHIM_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom;
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#else
    // As if entry had been called: a return address (none) above six saved registers.
    auto* top = reinterpret_cast<uintptr_t*>(bottom + size_);
    *--top = 0;
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;
    stack_pointer_ = top;
#endif
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves this fiber, on which the caller runs, for `to`; returns when someone switches back.
  void switch_to(Fiber& to) {
#ifndef MVNROB_SHIM_UCONTEXT
    void* const load = to.stack_pointer_;  // read while still this fiber in ThreadSanitizer's eyes
#endif
#ifdef __SANITIZE_ADDRESS__
    came_from() = this;
    __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(to.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef MVNROB_SHIM_UCONTEXT
    swapcontext(&context_, &to.context_);
#else
    switch_stack(&stack_pointer_, load);
#endif
#ifdef __SANITIZE_ADDRESS__
    finish_switch(fake_stack_);
#endif
  }

  // First thing to do on a new stack.
  static void begin() {
#ifdef __SANITIZE_ADDRESS__
    finish_switch(nullptr);
#endif
  }

 private:
#ifdef __SANITIZE_ADDRESS__
  static Fiber*& came_from() {
    static thread_local Fiber* fiber = nullptr;
    return fiber;
  }

  // Tells AddressSanitizer that the stack has changed, and notes the bounds of the one that was
  // left: those of the host's own stack are known from nowhere else.
  static void finish_switch(void* fake_stack) {
    Fiber& last = *came_from();
    __sanitizer_finish_switch_fiber(fake_stack, &last.bottom_, &last.size_);
  }

  void* fake_stack_ = nullptr;
#endif
#ifdef __SANITIZE_THREAD__
  void* tsan_;
#endif
#ifdef MVNROB_SHIM_UCONTEXT
  ucontext_t context_{};
#else
  void* stack_pointer_ = nullptr;
#endif
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace mvnrob::shim
