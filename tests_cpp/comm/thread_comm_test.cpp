// Ranks as threads, natively: ThreadSanitizer looks at these.

#include "comm/thread_comm.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "support.h"

namespace sparsespan {
namespace {

using Rank = std::function<void(Communicator&)>;

void run(int ranks, const Rank& body) {
  auto comms = ThreadComm::make(ranks);
  std::vector<std::thread> team;
  for (auto& comm : comms) {
    team.emplace_back([&comm, &body] {
      comm->set_timeout(20);
      body(*comm);
      comm->close();
    });
  }
  for (auto& thread : team) thread.join();
}

test::Array<float> filled(int rank, std::int64_t rows) {
  test::Array<float> a({rows, 3});
  for (std::size_t i = 0; i < a.data.size(); ++i) a.data[i] = static_cast<float>(100 * rank) + static_cast<float>(i);
  return a;
}

class ThreadRanks : public ::testing::TestWithParam<int> {};

TEST_P(ThreadRanks, GatherAndReduceManyTimes) {
  const int n = GetParam();
  run(n, [n](Communicator& comm) {
    for (int round = 0; round < 50; ++round) {
      auto x = filled(comm.rank() + round, 2);
      test::Array<float> all({2 * n, 3});
      test::Array<float> sum({2, 3});
      auto gather = comm.iall_gather(x.tensor(), all.tensor());
      auto reduce = comm.iall_reduce(x.tensor(), sum.tensor(), Reduce::sum);
      (comm.rank() % 2 == 0 ? gather : reduce)->wait();
      (comm.rank() % 2 == 0 ? reduce : gather)->wait();
      float expected = 0;
      for (int r = 0; r < n; ++r) {
        EXPECT_EQ(all.data[6 * r], static_cast<float>(100 * (r + round)));
        expected += static_cast<float>(100 * (r + round));
      }
      EXPECT_EQ(sum.data[0], expected);
    }
    EXPECT_EQ(comm.ledger()->counter(CommOp::all_gather).bytes, 50 * (n - 1) * 24);
  });
}

TEST_P(ThreadRanks, MessagesAroundTheRing) {
  const int n = GetParam();
  if (n == 1) return;
  run(n, [n](Communicator& comm) {
    auto x = filled(comm.rank(), 4);
    test::Array<float> got({4, 3});
    auto send = comm.isend(x.tensor(), (comm.rank() + 1) % n, 7);
    comm.irecv(got.tensor(), (comm.rank() + n - 1) % n, 7)->wait();
    send->wait();
    EXPECT_EQ(got.data, filled((comm.rank() + n - 1) % n, 4).data);
  });
}

TEST_P(ThreadRanks, DifferentShapesAreToldOnEveryRank) {
  const int n = GetParam();
  if (n == 1) return;
  run(n, [n](Communicator& comm) {
    const std::int64_t rows = comm.rank() == 1 ? 3 : 2;
    auto x = filled(0, rows);
    test::Array<float> all({rows * n, 3});
    EXPECT_THROW(comm.iall_gather(x.tensor(), all.tensor())->wait(), rank_mismatch);
  });
}

// The late rank finds the group given up; the one that waited names it and leaves no pointer behind.
TEST_P(ThreadRanks, TimeoutPoisons) {
  const int n = GetParam();
  if (n == 1) return;
  run(n, [](Communicator& comm) {
    auto x = filled(0, 1000);
    test::Array<float> sum({1000, 3});
    CommOptions options;
    options.timeout = 0.05;
    if (comm.rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    EXPECT_THROW(comm.iall_reduce(x.tensor(), sum.tensor(), Reduce::sum, options)->wait(), comm_error);
    EXPECT_THROW(comm.ibarrier()->wait(), comm_aborted);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadRanks, ::testing::Values(1, 2, 3, 4, 8));

}  // namespace
}  // namespace sparsespan
