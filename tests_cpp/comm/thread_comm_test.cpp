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

// Little data is copied by whoever comes last, much by each rank for itself: the same results, the same counts.
TEST_P(ThreadRanks, LittleAndMuch) {
  const int n = GetParam();
  for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{1500}}) {
    run(n, [n, rows](Communicator& comm) {
      const auto at = [](const test::Array<float>& a, std::int64_t row) { return a.data[3 * row]; };
      const int me = comm.rank();
      for (int round = 0; round < 5; ++round) {
        if ((me + round) % 3 == 0) std::this_thread::yield();
        auto x = filled(me + round, rows * n);
        test::Array<float> all({rows * n * n, 3});
        test::Array<float> swapped({rows * n, 3});
        test::Array<float> piece({rows, 3});
        auto works = {comm.iall_gather(x.tensor(), all.tensor()), comm.iall_to_all(x.tensor(), swapped.tensor()),
                      comm.ireduce_scatter(x.tensor(), piece.tensor(), Reduce::max)};
        for (auto& work : works) {
          while (!work->test()) std::this_thread::yield();
        }
        for (int r = 0; r < n; ++r) {
          EXPECT_EQ(at(all, r * rows * n), static_cast<float>(100 * (r + round)));
          EXPECT_EQ(at(swapped, r * rows), at(filled(r + round, rows * n), me * rows));
        }
        EXPECT_EQ(at(piece, 0), at(filled(n - 1 + round, rows * n), me * rows));
        comm.iall_reduce(x.tensor(), x.tensor(), Reduce::max)->wait();
        EXPECT_EQ(x.data, filled(n - 1 + round, rows * n).data);
        auto root = filled(me, rows);
        comm.ibroadcast(root.tensor(), n - 1)->wait();
        EXPECT_EQ(root.data, filled(n - 1, rows).data);
      }
      const std::int64_t away = 5 * (n - 1) * rows * 12;
      EXPECT_EQ(comm.ledger()->counter(CommOp::all_gather).bytes, away * n);
      EXPECT_EQ(comm.ledger()->counter(CommOp::all_to_all).bytes, away);
      EXPECT_EQ(comm.ledger()->counter(CommOp::reduce_scatter).bytes, away);
      EXPECT_EQ(comm.ledger()->counter(CommOp::all_reduce).bytes, 2 * away);
      EXPECT_EQ(comm.ledger()->counter(CommOp::broadcast).bytes, me == n - 1 ? 0 : 5 * rows * 12);
    });
  }
}

// Parts of parts, used side by side with the whole.
TEST_P(ThreadRanks, PartsSideBySide) {
  const int n = GetParam();
  run(n, [n](Communicator& comm) {
    for (int round = 0; round < 3; ++round) {
      auto part = comm.split(comm.rank() % 2, 0);
      auto x = filled(comm.rank(), 1);
      test::Array<float> sum({1, 3});
      test::Array<float> all({n, 3});
      auto whole = comm.iall_gather(x.tensor(), all.tensor());
      part->iall_reduce(x.tensor(), sum.tensor(), Reduce::max)->wait();
      whole->wait();
      const int last = n - 1 - (n - 1 - comm.rank()) % 2;
      EXPECT_EQ(sum.data, filled(last, 1).data);
      part->close();
    }
  });
}

// Whoever fails, and whenever: every rank ends in words, and nobody reads buffers that are gone.
TEST_P(ThreadRanks, FailuresAtAnyTime) {
  const int n = GetParam();
  if (n == 1) return;
  for (int round = 0; round < 20; ++round) {
    run(n, [n, round](Communicator& comm) {
      int done = 0;
      try {
        for (;; ++done) {
          auto x = filled(comm.rank(), done % 2 == 0 ? 1 : 5000);
          test::Array<float> all({n * x.shape[0], 3});
          auto work = comm.iall_gather(x.tensor(), all.tensor());
          if (comm.rank() == round % n && done == 3 + round % 3) comm.poison("enough");
          work->wait();
        }
      } catch (const comm_aborted& e) {
        EXPECT_NE(std::string(e.what()).find("enough"), std::string::npos);
      }
      EXPECT_LT(done, 10);
    });
  }
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
