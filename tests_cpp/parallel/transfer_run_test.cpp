// A hand-over between threads: bytes, checksums, refusals that reach everybody.

#include "parallel/transfer_run.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "comm/faulty_comm.h"
#include "comm/thread_comm.h"
#include "support.h"

namespace sparsespan {
namespace {

using Bytes = test::Array<std::uint8_t>;
using Ids = test::Array<std::int64_t>;

constexpr std::int64_t kTokens = 13;
constexpr std::int64_t kPages = 4;  // of 4 tokens

// One prefill rank, two decode ranks that shard the tokens one by one; one layer, no index.
struct World {
  KvSide prefill{.page_size = 4, .stages = {1}};
  KvSide decode{.tp = 2, .dcp = 2, .page_size = 4, .stages = {1}};
  std::vector<Transfer> table = transfer_plan(
      {.prefill = prefill, .decode = decode, .num_layers = 1, .kv_bytes = 656, .lengths = {kTokens}, .present = {0}});
  Bytes source{std::vector<std::int64_t>{kPages, 4, 656}};
  std::vector<Bytes> dest{2, Bytes({kPages, 4, 656})};
  Ids source_pages{std::vector<std::int64_t>{kPages}};
  Ids dest_pages{std::vector<std::int64_t>{2}};

  World() {
    for (std::size_t i = 0; i < source.data.size(); ++i) source.data[i] = static_cast<std::uint8_t>(i / 656 + 1);
    source_pages.data = {0, 1, 2, 3};
    dest_pages.data = {3, 1};
  }

  RunTransferParams params(int rank) {
    RunTransferParams p;
    p.table = table;
    for (const Part part : {Part::kv, Part::index}) {
      p.src_layout[static_cast<int>(part)] = prefill_layout(prefill, part);
      p.dst_layout[static_cast<int>(part)] = decode_layout(decode, part);
    }
    p.src_page_size = p.dst_page_size = 4;
    p.bytes[0] = 656;
    p.prefill_ranks = {0};
    p.decode_ranks = {1, 2};
    TransferCaches& mine = rank == 0 ? p.source : p.dest;
    mine.present = true;
    mine.kv = {rank == 0 ? source.tensor() : dest[rank - 1].tensor()};
    mine.pages = {rank == 0 ? source_pages.tensor() : dest_pages.tensor()};
    return p;
  }
};

template <class Body>
void on_three(World& world, Body&& body) {
  auto comms = ThreadComm::make(3);
  std::vector<std::thread> team;
  for (auto& comm : comms) {
    team.emplace_back([&comm, &body, &world] {
      comm->set_timeout(20);
      body(comm, world.params(comm->rank()));
      comm->close();
    });
  }
  for (auto& thread : team) thread.join();
}

TEST(RunTransfer, TokensLieWhereTheDecodeLayoutHasThem) {
  World world;
  on_three(world, [](const auto& comm, const RunTransferParams& p) {
    const TransferReport report = run_transfer(*comm, p, {});
    EXPECT_EQ(report.sent, comm->rank() == 0 ? kTokens * 656 : 0);
    if (comm->rank() > 0) EXPECT_EQ(report.pages, 2);
    EXPECT_EQ(comm->ledger()->counter(CommOp::recv).bytes, report.received + report.checksums);
  });
  for (std::int64_t token = 0; token < kTokens; ++token) {
    const auto& cache = world.dest[token % 2].data;
    const std::int64_t local = token / 2;
    const std::int64_t slot = world.dest_pages.data[local / 4] * 4 + local % 4;
    EXPECT_EQ(cache[slot * 656], token + 1);
    EXPECT_EQ(cache[slot * 656 + 655], token + 1);
  }
  EXPECT_EQ(world.dest[0].data[0], 0);  // page 0 belongs to nobody
}

TEST(RunTransfer, ACorruptedPageStoresNothingAnywhere) {
  World world;
  std::atomic<int> told = 0;
  on_three(world, [&told](const std::shared_ptr<ThreadComm>& comm, const RunTransferParams& p) {
    const bool bad = comm->rank() == 0;
    const auto faulty = bad ? std::make_shared<FaultyComm>(comm, Fault::corrupt, 1, 0) : nullptr;
    try {
      run_transfer(bad ? static_cast<Communicator&>(*faulty) : *comm, p, {});
    } catch (const checksum_mismatch& e) {
      EXPECT_EQ(e.ranks, (std::vector<int>{0, 1}));
      ++told;
    }
  });
  EXPECT_EQ(told, 3);
  for (const Bytes& cache : world.dest) EXPECT_EQ(cache.data, Bytes({kPages, 4, 656}).data);
}

TEST(RunTransfer, ARefusalIsToldToEverybody) {
  World world;
  world.dest_pages.data = {3, 7};
  std::atomic<int> refused = 0;
  std::atomic<int> told = 0;
  on_three(world, [&](const auto& comm, const RunTransferParams& p) {
    try {
      run_transfer(*comm, p, {});
    } catch (const std::out_of_range&) {
      ++refused;
    } catch (const comm_error& e) {
      EXPECT_EQ(e.ranks, std::vector<int>{1});
      ++told;
    }
    EXPECT_EQ(comm->ledger()->counter(CommOp::recv).calls, 0);
  });
  EXPECT_EQ(refused, 2);
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace sparsespan
