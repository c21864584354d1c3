#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>

#include "core/check.h"
#include "core/op_scope.h"
#include "core/openmp_runtime.h"

#ifdef SPARSESPAN_STD_THREADS
#include <thread>
#include <vector>
#endif

namespace sparsespan {

namespace {

std::atomic<int> chosen_threads{0};
thread_local int chosen_here = 0;
thread_local bool inside_parallel = false;

// An OpenMP runtime does not survive fork(): its threads are gone but it waits for them. A child runs serially.
std::atomic<bool> forked{false};
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

int environment_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS"); text != nullptr) {
    const long n = std::strtol(text, nullptr, 10);  // "4,2" is a list per nesting level: the first counts
    if (n >= 1 && n <= 4096) return static_cast<int>(n);
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return 1;
}

// One call of parallel_for: threads draw indices until none are left.
struct Work {
  Work(std::int64_t count, int team, TaskRef function) : n(count), slots(team), task(function) {}

  std::int64_t n;
  int slots;
  TaskRef task;
  Isa isa = active_isa();
  std::atomic<std::int64_t> next{0};
  std::atomic<int> next_slot{0};
  std::atomic<std::int64_t> failed_at{std::numeric_limits<std::int64_t>::max()};
  std::mutex mutex;
  std::exception_ptr error;

  void run_one(std::int64_t index, int slot) noexcept {
    try {
      task(index, slot);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (index < failed_at.load()) {
        failed_at.store(index);
        error = std::current_exception();
      }
    }
  }
  // Indices are drawn in ascending order, so every index below the lowest failure has been drawn before it:
  // skipping only what lies above keeps the reported error the same on every run.
  void drain() noexcept {
    const int slot = next_slot.fetch_add(1);
    if (slot >= slots) return;
    const OpScope scope(isa);
    inside_parallel = true;
    for (std::int64_t i = next.fetch_add(1); i < n && i < failed_at.load(); i = next.fetch_add(1)) run_one(i, slot);
    inside_parallel = false;
  }
};

void run_serial(Work& work) noexcept {
  const bool outer = inside_parallel;
  work.drain();
  inside_parallel = outer;
}

#ifdef SPARSESPAN_STD_THREADS
void run_team(Work& work) {
  std::vector<std::thread> team;
  team.reserve(work.slots - 1);
  for (int i = 1; i < work.slots; ++i) team.emplace_back([&work] { work.drain(); });
  work.drain();
  for (auto& thread : team) thread.join();
}
#else
void run_team(Work& work) {
  const OpenMpRuntime runtime = openmp_runtime();
  if (runtime.parallel == nullptr) {
    run_serial(work);
    return;
  }
  runtime.parallel([](void* data) { static_cast<Work*>(data)->drain(); }, &work, static_cast<unsigned>(work.slots), 0);
}
#endif

}  // namespace

int num_threads() {
  if (chosen_here > 0) return chosen_here;
  const int chosen = chosen_threads.load();
  if (chosen > 0) return chosen;
  static const int from_environment = environment_threads();
  return from_environment;
}

void set_num_threads(int n) {
  if (n < 0) refuse_value("set_num_threads", "n", "is ", n, ", needs at least 1 (or 0 for the environment's choice)");
  chosen_threads.store(n);
}

void set_num_threads_here(int n) {
  if (n < 0) refuse_value("set_num_threads_here", "n", "is ", n, ", needs at least 1 (or 0 for the process's choice)");
  chosen_here = n;
}

int team_size(std::int64_t n, int threads) {
  if (threads < 0) refuse_value("parallel_for", "threads", "is ", threads, ", needs at least 1 (or 0 for the default)");
  if (inside_parallel || forked.load()) return 1;
  const std::int64_t wanted = threads > 0 ? threads : num_threads();
  // More threads than the machine could ever use would only test how many it lets a process have, and an OpenMP
  // runtime that cannot make a thread ends the process.
  static const std::int64_t most = std::max<std::int64_t>(64, 4L * sysconf(_SC_NPROCESSORS_ONLN));
  return static_cast<int>(std::clamp<std::int64_t>(std::min(n, wanted), 1, most));
}

void parallel_for(std::int64_t n, int threads, TaskRef task) {
  const int slots = team_size(n, threads);
  if (n <= 0) return;
  Work work{n, slots, task};
  if (slots == 1) {
    run_serial(work);
  } else {
    run_team(work);
  }
  if (work.error) std::rethrow_exception(work.error);
}

std::string thread_runtime() {
  if (forked.load()) return "serial (forked child)";
#ifdef SPARSESPAN_STD_THREADS
  return "std::thread";
#else
  return openmp_runtime().description;
#endif
}

}  // namespace sparsespan
