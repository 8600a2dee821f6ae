// Threads that go through the same phases together, on the threads that torch already has.
#pragma once

#include <sched.h>

#include "parallel.h"

namespace pdmesh {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 20000;  // some hundred microseconds: far longer than any wait, unless a thread lost its core

// What the members of a team share. Each count has a cache line of its own.
struct TeamState {
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> arrived{0};
  alignas(64) std::atomic<int64_t> phase{0};
};

// One thread's place in a team of `size`.
class Member {
 public:
  Member(TeamState& state, int64_t number, int64_t size) : number(number), size_(size), state_(state) {}

  // Every member calls it, with the same tasks: body(0) … body(tasks - 1), each once, by whoever is free. Returns
  // when all are done, and what they wrote can be read.
  template <typename Body>
  void share(int64_t tasks, const Body& body) {
    for (int64_t task; (task = state_.next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task);
    wait();
  }

  const int64_t number;

 private:
  void wait() {
    const int64_t own = state_.phase.load(std::memory_order_relaxed);
    if (state_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      state_.arrived.store(0, std::memory_order_relaxed);
      state_.next.store(0, std::memory_order_relaxed);
      state_.phase.store(own + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; state_.phase.load(std::memory_order_acquire) == own; ++spins) {
      if (spins < kSpins) {
        relax();
      } else {
        sched_yield();
      }
    }
  }

  const int64_t size_;
  TeamState& state_;
};

typedef int (*OmpCount)();

inline OmpCount omp_count(const char* name) { return reinterpret_cast<OmpCount>(dlsym(RTLD_DEFAULT, name)); }

// Whether `as_team` can have more than one thread in this process.
inline bool has_teams() {
  static const bool found = gomp_parallel() != nullptr && omp_count("omp_get_thread_num") != nullptr &&
                            omp_count("omp_get_num_threads") != nullptr;
  return found;
}

template <typename Body>
struct TeamWork {
  const Body* body;
  TeamState state;

  static void work(void* data) {
    static const OmpCount number = omp_count("omp_get_thread_num"), size = omp_count("omp_get_num_threads");
    auto* self = static_cast<TeamWork*>(data);
    // As many as there are, which may be fewer than were asked for.
    Member member(self->state, number(), size());
    (*self->body)(member);
  }
};

// body(member) on each of `threads` threads at the same time.
template <typename Body>
void as_team(int64_t threads, const Body& body) {
  TeamWork<Body> work{&body, {}};
  if (threads > 1 && has_teams()) {
    gomp_parallel()(TeamWork<Body>::work, &work, static_cast<unsigned>(threads), 0);
  } else {
    Member alone(work.state, 0, 1);
    body(alone);
  }
}

}  // namespace pdmesh
