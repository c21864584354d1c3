#include "comm/checks.h"

#include <algorithm>

namespace sparsespan {

void check_operand(std::string_view op, std::string_view argument, const Tensor& t) {
  if (!t) refuse_type(op, argument, "is not given, needs an array");
  if (t.dtype == DType::none || t.dtype == DType::other) {
    refuse_type(op, argument, "has a dtype that ranks cannot exchange, needs a number type");
  }
  require_contiguous(op, argument, t);
}

void check_rank(std::string_view op, std::string_view argument, int rank, int size) {
  if (rank < 0 || rank >= size) {
    refuse_value(op, argument, "is ", rank, ", needs a rank of this group, 0 to ", size - 1);
  }
}

void check_rows(std::string_view op, std::string_view argument, const Rows& rows, int size, std::int64_t sum,
                std::string_view of) {
  if (static_cast<std::int64_t>(rows.size()) != size) {
    refuse_value(op, argument, "has ", rows.size(), " counts, needs one per rank: ", size);
  }
  std::int64_t total = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (rows[r] < 0) refuse_value(op, argument, "has ", rows[r], " for rank ", r, ", needs at least 0");
    if (__builtin_add_overflow(total, rows[r], &total)) refuse_value(op, argument, "overflows 64 bits");
  }
  if (total != sum) refuse_value(op, argument, "adds up to ", total, ", needs ", sum, ", the rows of ", of);
}

void check_result(std::string_view op, const Tensor& in, const Tensor& out, std::int64_t rows, bool may_be_in) {
  check_operand(op, "out", out);
  if (out.dtype != in.dtype) {
    refuse_type(op, "out", "is ", name_of(out.dtype), ", needs ", name_of(in.dtype), " like the input");
  }
  bool same = out.rank == in.rank;
  for (int i = 1; same && i < in.rank; ++i) same = out.shape[i] == in.shape[i];
  if (!same || (in.rank > 0 && out.shape[0] != rows)) {
    Tensor needed = in;
    if (in.rank > 0) needed.shape[0] = rows;
    refuse_value(op, "out", "has shape ", out.shape_text(), ", needs ", needed.shape_text());
  }
  if (may_be_in && out.data == in.data) {
    if (!out.writable) refuse_value(op, "out", "is read-only, needs memory to store into");
    return;
  }
  require_writable(op, "out", out, {&in});
}

void check_reduction(std::string_view op, const Tensor& in, Reduce reduce) {
  if (reduce == Reduce::none) refuse_value(op, "op", "is none, needs sum or max");
  require_dtype(op, "x", in, {DType::float32, DType::float64, DType::bfloat16, DType::int32, DType::int64});
}

std::int64_t row_bytes(std::string_view op, const Tensor& t) {
  std::int64_t bytes = size_of(t.dtype);
  for (int i = 1; i < t.rank; ++i) bytes = checked_product(op, "x", bytes, t.shape[i]);
  return bytes;
}

std::int64_t total_bytes(std::string_view op, const Tensor& t) {
  return t.rank == 0 ? size_of(t.dtype) : checked_product(op, "x", row_bytes(op, t), t.shape[0]);
}

Rows equal_rows(std::string_view op, const Tensor& in, int size) {
  if (in.rank == 0) refuse_value(op, "x", "has no axes, needs at least one to cut along");
  if (in.shape[0] % size != 0) {
    refuse_value(op, "x", "has ", in.shape[0], " rows, needs a multiple of the ", size,
                 " ranks; pad it, or use the form with counts");
  }
  return Rows(size, in.shape[0] / size);
}

}  // namespace sparsespan
