// ThreadComm against what it cannot beat: std::barrier for the latency of small collectives, memcpy on as many threads
// for the bandwidth of large ones. Both take turns; every turn is printed as "name seconds-of-ours seconds-of-peer".
//
//   comm_latency small RANKS BYTES ROUNDS TURNS
//   comm_latency large RANKS BYTES TURNS

#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/thread_comm.h"

namespace {

using namespace sparsespan;
using Clock = std::chrono::steady_clock;
using Buffer = std::vector<unsigned char>;

Tensor bytes_of(Buffer& data) {
  Tensor t;
  t.data = data.data();
  t.dtype = DType::float32;
  t.rank = 1;
  t.shape[0] = static_cast<std::int64_t>(data.size() / sizeof(float));
  t.strides[0] = 1;
  t.present = t.writable = true;
  return t;
}

struct Rank {
  std::shared_ptr<ThreadComm> comm;
  Buffer in, out;
};

// Runs body on every rank's thread, `rounds` times behind a common start; seconds per round of the slowest.
double timed(std::vector<Rank>& ranks, int rounds, const std::function<void(Rank&)>& body) {
  std::barrier<> start(static_cast<std::ptrdiff_t>(ranks.size()));
  std::vector<double> seconds(ranks.size());
  std::vector<std::thread> team;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    team.emplace_back([&, r] {
      body(ranks[r]);  // warm
      start.arrive_and_wait();
      const auto begin = Clock::now();
      for (int i = 0; i < rounds; ++i) body(ranks[r]);
      seconds[r] = std::chrono::duration<double>(Clock::now() - begin).count() / rounds;
    });
  }
  for (auto& thread : team) thread.join();
  double slowest = 0;
  for (const double s : seconds) slowest = s > slowest ? s : slowest;
  return slowest;
}

std::vector<Rank> make_ranks(int ranks, std::size_t in, std::size_t out) {
  std::vector<Rank> team;
  for (auto& comm : ThreadComm::make(ranks)) team.push_back({comm, Buffer(in, 1), Buffer(out, 2)});
  return team;
}

void small(int ranks, std::size_t bytes, int rounds, int turns) {
  auto gather = make_ranks(ranks, bytes / ranks, bytes);
  auto reduce = make_ranks(ranks, bytes, bytes);
  std::barrier<> peer(ranks);
  for (int turn = 0; turn < turns; ++turn) {
    const double barrier = timed(reduce, rounds, [&](Rank&) { peer.arrive_and_wait(); });
    const auto row = [&](const char* name, std::vector<Rank>& team, const std::function<void(Rank&)>& body) {
      std::printf("%s %.9f %.9f\n", name, timed(team, rounds, body), barrier);
    };
    row("all_gather", gather, [](Rank& r) { r.comm->iall_gather(bytes_of(r.in), bytes_of(r.out))->wait(); });
    row("all_reduce", reduce,
        [](Rank& r) { r.comm->iall_reduce(bytes_of(r.in), bytes_of(r.out), Reduce::sum)->wait(); });
    row("all_to_all", reduce, [](Rank& r) { r.comm->iall_to_all(bytes_of(r.in), bytes_of(r.out))->wait(); });
    row("broadcast", reduce, [](Rank& r) { r.comm->ibroadcast(bytes_of(r.out), 0)->wait(); });
    row("barrier", reduce, [](Rank& r) { r.comm->ibarrier()->wait(); });
  }
}

void large(int ranks, std::size_t bytes, int turns) {
  auto gather = make_ranks(ranks, bytes / ranks, bytes);
  auto copy = make_ranks(ranks, bytes, bytes);
  for (int turn = 0; turn < turns; ++turn) {
    const double ours = timed(gather, 3, [](Rank& r) { r.comm->iall_gather(bytes_of(r.in), bytes_of(r.out))->wait(); });
    const double peer = timed(copy, 3, [](Rank& r) { std::memcpy(r.out.data(), r.in.data(), r.out.size()); });
    std::printf("all_gather %.9f %.9f\n", ours, peer);
  }
}

}  // namespace

int main(int count, char** words) {
  const auto number = [&](int i) { return i < count ? std::atoll(words[i]) : 0; };
  const std::string what = count > 1 ? words[1] : "";
  if (what == "small" && count == 6) {
    small(static_cast<int>(number(2)), number(3), static_cast<int>(number(4)), static_cast<int>(number(5)));
  } else if (what == "large" && count == 5) {
    large(static_cast<int>(number(2)), number(3), static_cast<int>(number(4)));
  } else {
    std::fputs("comm_latency small RANKS BYTES ROUNDS TURNS | large RANKS BYTES TURNS\n", stderr);
    return 2;
  }
  return 0;
}
