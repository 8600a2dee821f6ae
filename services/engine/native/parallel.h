// Work on the threads that torch already has: two pools would take the cores from each other.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace pdmesh {

typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);

// libgomp's and libomp's entry for `#pragma omp parallel`; null in a process without either.
inline GompParallel gomp_parallel() {
  static const GompParallel entry = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return entry;
}

template <typename Body>
struct Shared {
  const Body* body;
  int64_t tasks;
  std::atomic<int64_t> next;

  static void work(void* data) {
    auto* self = static_cast<Shared*>(data);
    for (int64_t task; (task = self->next.fetch_add(1, std::memory_order_relaxed)) < self->tasks;) (*self->body)(task);
  }
};

// body(0) … body(tasks - 1), each once, in any order; returns when all are done.
template <typename Body>
void for_each(int64_t tasks, int64_t threads, const Body& body) {
  threads = std::min(threads, tasks);
  GompParallel parallel = threads > 1 ? gomp_parallel() : nullptr;
  if (parallel == nullptr) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  Shared<Body> shared{&body, tasks, {0}};
  parallel(Shared<Body>::work, &shared, static_cast<unsigned>(threads), 0);
}

}  // namespace pdmesh
