#pragma once

// The thread runtime: the only place of the project that knows OpenMP.
//
// An op cuts its work into `n` tasks whose results do not depend on who runs them, and calls parallel_for. The
// default backend borrows the OpenMP runtime that the process already has (torch's, if torch came first; the
// system's otherwise) through the GOMP entry point, so that there is never a second pool of threads. With
// SPARSESPAN_STD_THREADS defined it runs on std::thread, which ThreadSanitizer understands.

#include <cstdint>
#include <string>
#include <type_traits>

namespace sparsespan {

// A reference to a callable: no allocation, lives no longer than the call.
class TaskRef {
 public:
  // Implicit, because a call site passes a lambda; the constraint keeps copies and moves out.
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>)
      TaskRef(F&& f)  // NOLINT(google-explicit-constructor, bugprone-forwarding-reference-overload)
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, std::int64_t index, int slot) {
          (*static_cast<std::remove_reference_t<F>*>(object))(index, slot);
        }) {}
  void operator()(std::int64_t index, int slot) const { call_(object_, index, slot); }

 private:
  void* object_;
  void (*call_)(void*, std::int64_t, int);
};

// Threads used when a call says threads = 0: set_num_threads(n), else OMP_NUM_THREADS, else the CPUs this
// process may run on.
int num_threads();
// n = 0 goes back to the environment's choice. Throws std::invalid_argument for n < 0.
void set_num_threads(int n);
// The same for calls from this thread only: ranks that are threads share the cores out. n = 0 takes it back.
void set_num_threads_here(int n);

// How many slots parallel_for(n, threads, ...) may use at most: size per-slot scratch with it. 1 inside
// another parallel_for and in a forked child.
int team_size(std::int64_t n, int threads);

// Calls task(index, slot) for every index in [0, n), in ascending order of start, on up to team_size(n, threads)
// threads. slot < team_size and no two running tasks share one. If tasks throw, the exception of the lowest
// index is rethrown here after all threads have come back. Nested calls run serially.
void parallel_for(std::int64_t n, int threads, TaskRef task);

// Rows that make one task of about 8192 elements (some microseconds of copying or quantising): a handful of short rows
// is not worth waking a thread for.
constexpr std::int64_t rows_per_task(std::int64_t elements_per_row) {
  constexpr std::int64_t kGrain = 8192;
  return elements_per_row >= kGrain ? 1 : kGrain / (elements_per_row < 1 ? 1 : elements_per_row);
}

// Slots that parallel_rows may use.
inline int row_team_size(std::int64_t rows, std::int64_t elements_per_row, int threads) {
  const std::int64_t step = rows_per_task(elements_per_row);
  return team_size((rows + step - 1) / step, threads);
}

// Calls body(row, slot) for every row, in tasks of neighbouring rows.
template <class Body>
void parallel_rows(std::int64_t rows, std::int64_t elements_per_row, int threads, const Body& body) {
  const std::int64_t step = rows_per_task(elements_per_row);
  parallel_for((rows + step - 1) / step, threads, [&](std::int64_t task, int slot) {
    const std::int64_t last = rows - task * step < step ? rows : (task + 1) * step;
    for (std::int64_t row = task * step; row < last; ++row) body(row, slot);
  });
}

// Where the threads come from, for build_info(): "libgomp (path)", "std::thread", "serial (why)".
std::string thread_runtime();
// An OpenMP library to prefer when the process has none loaded yet (torch's own copy). Empty: none.
void set_openmp_hint(std::string path);

}  // namespace sparsespan
