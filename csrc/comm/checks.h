#pragma once

// What a rank can tell to be wrong before anything is sent: shapes, dtypes, counts, overlap.

#include "comm/communicator.h"

namespace sparsespan {

void check_operand(std::string_view op, std::string_view argument, const Tensor& t);
void check_rank(std::string_view op, std::string_view argument, int rank, int size);
void check_rows(std::string_view op, std::string_view argument, const Rows& rows, int size, std::int64_t sum,
                std::string_view of);
// `out` has the dtype of `in`, its trailing axes, `rows` rows, and no byte of `in` (unless they are one array).
void check_result(std::string_view op, const Tensor& in, const Tensor& out, std::int64_t rows, bool may_be_in);
void check_reduction(std::string_view op, const Tensor& in, Reduce reduce);
// Bytes of one row of t.
std::int64_t row_bytes(std::string_view op, const Tensor& t);
std::int64_t total_bytes(std::string_view op, const Tensor& t);
Rows equal_rows(std::string_view op, const Tensor& in, int size);  // refuses a first axis that N does not divide

}  // namespace sparsespan
