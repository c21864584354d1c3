#include "pipeline/schedule.h"

#include <gtest/gtest.h>

#include <string>

#include "pipeline/generate.h"
#include "pipeline/lower.h"

namespace sparsespan::pipeline {
namespace {

TEST(PipelineAction, TextRoundTrip) {
  for (const std::string text : {"2F0",
                                 "0B31",
                                 "7I2",
                                 "7W2",
                                 "0SEND_F3",
                                 "1RECV_F3",
                                 "4SEND_B0",
                                 "3RECV_B0",
                                 "0SEND_X1",
                                 "1RECV_X1",
                                 "3SEND_T9",
                                 "0RECV_T9",
                                 "2FETCH",
                                 "2EVICT",
                                 "5REDUCE_GRAD",
                                 "1P5@0:4096+2048",
                                 "1D6@2:17+8",
                                 "3S6",
                                 "(0F7;7B3)OVERLAP_F_B",
                                 "(1P5@0:0+64;1D6@2:0+8)MIXED"}) {
    EXPECT_EQ(to_text(parse_action(text, 1, 1)), text);
  }
  EXPECT_EQ(to_text(parse_action("3UNSHARD", 1, 1)), "3FETCH");
  EXPECT_EQ(to_text(parse_action("3EVICT", 1, 1), true), "3RESHARD");
}

TEST(PipelineAction, SaysLineAndColumn) {
  const auto message = [](const std::string& csv) -> std::string {
    try {
      parse_csv(csv);
    } catch (const schedule_error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(message("0F0,0B0\n1F0, 1Q0\n").find("line 2, column 7: unknown kind 'Q'"), std::string::npos);
  EXPECT_NE(message("0F\n").find("line 1, column 3: no micro-batch number"), std::string::npos);
  EXPECT_NE(message("F0\n").find("column 1: no stage number"), std::string::npos);
  EXPECT_NE(message("0F0x\n").find("column 4: 'x' is left over"), std::string::npos);
  EXPECT_NE(message("0F99999999999\n").find("is larger than 2147483647"), std::string::npos);
  EXPECT_NE(message("(0F1;1B0\n").find("no ')'"), std::string::npos);
  EXPECT_NE(message("(0F1;1B0)F\n").find("a bracket ends in OVERLAP_F_B or MIXED"), std::string::npos);
  EXPECT_NE(message("0OVERLAP_F_B\n").find("needs its parts in brackets"), std::string::npos);
  EXPECT_NE(message("0P1\n").find("no '@request:start+length'"), std::string::npos);
  EXPECT_NE(message("0P1@2:3\n").find("no '+'"), std::string::npos);
}

TEST(PipelineSchedule, CsvRoundTrip) {
  const Schedule s = add_send_recv(dualpipe_v(3, 7), {});
  EXPECT_EQ(make_schedule(parse_csv(to_csv(s, false)), -1, -1, ""), s);
  // Rows without cells, and rows of one idle cell, survive.
  const std::string odd = "0F0,,0B0\n\n\"\"\n";
  const auto lists = parse_csv(odd);
  ASSERT_EQ(lists.size(), 3U);
  EXPECT_EQ(lists[1].size(), 0U);
  EXPECT_EQ(lists[2].size(), 1U);
  EXPECT_EQ(to_csv(make_schedule(lists, -1, -1, ""), false), odd);
}

}  // namespace
}  // namespace sparsespan::pipeline
