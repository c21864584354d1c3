// What a busy receiver does to a static parallel loop, and the loop to the receiver.
//
//   g++ -O2 -fopenmp bench/native/static_loop.cpp -o static_loop && ./static_loop WORKERS RECEIVERS ROUNDS
//
// Prints: mean, median and 99th percentile of a round in microseconds, and million polls of the receiver a second. The
// work of a round is the same for any number of workers; RECEIVERS threads poll memory without rest.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kParts = 64;
constexpr int kSteps = 200000;  // a round outlasts the time slices that a system hands out

double seconds(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

double part(int p) {
  double x = 1.0 + p;
  for (int i = 0; i < kSteps; ++i) x = x * 0.999999 + 1e-6;
  return x;
}

}  // namespace

int main(int argc, char** argv) {
  const int workers = argc > 1 ? std::atoi(argv[1]) : 2;
  const int receivers = argc > 2 ? std::atoi(argv[2]) : 1;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 200;
  std::atomic<bool> stop{false};
  std::atomic<long> polls{0};
  std::vector<std::thread> team;
  for (int r = 0; r < receivers; ++r) {
    team.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) polls.fetch_add(1, std::memory_order_relaxed);
    });
  }
  std::vector<double> took;
  double sum = 0.0;
  const auto begin = Clock::now();
  for (int round = 0; round < rounds; ++round) {
    const auto start = Clock::now();
#pragma omp parallel for schedule(static) num_threads(workers) reduction(+ : sum)
    for (int p = 0; p < kParts; ++p) sum += part(p);
    took.push_back(seconds(start) * 1e6);
  }
  const double all = seconds(begin);
  stop = true;
  for (auto& thread : team) thread.join();
  std::sort(took.begin(), took.end());
  const auto at = [&](double q) { return took[static_cast<std::size_t>(q * static_cast<double>(took.size() - 1))]; };
  std::printf("%.1f %.1f %.1f %.3f %g\n", all / rounds * 1e6, at(0.5), at(0.99),
              static_cast<double>(polls) / all * 1e-6, sum);
  return 0;
}
