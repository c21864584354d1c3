#include "transform/linear.h"

#include <algorithm>
#include <cmath>

#include "core/convert.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/indexer.h"
#include "kernels/linear.h"
#include "kernels/quant.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "linear";
constexpr std::int64_t kRows = 64;     // rows of x, columns of the result and depth of what one task holds in float32:
constexpr std::int64_t kColumns = 48;  // 132, 99 and 196 KB of rows, weights and sums, for a second-level cache.
constexpr std::int64_t kDepth = 512;
constexpr std::int64_t kStride = kDepth + 16;  // off the power of two, which would map all rows to a few sets
constexpr int kMaxTileColumns = 8;

float scale_at(const Tensor& scale, std::int64_t i, std::int64_t j) {
  const std::int64_t at = i * scale.strides[0] + j * scale.strides[1];
  if (scale.dtype == DType::float32) return static_cast<const float*>(scale.data)[at];
  return to_float(static_cast<const Float8E8M0*>(scale.data)[at]);
}

void require_scale(const LinearParams& p) {
  if (p.w.dtype != DType::float8_e4m3fn) {
    if (p.scale) refuse_value(kOp, "weight_scale_inv", "is given, needs None: w is ", name_of(p.w.dtype));
    return;
  }
  if (!p.scale) refuse_value(kOp, "weight_scale_inv", "is None, needs the scales of the float8 w");
  if (p.w.shape[0] != 1) refuse_value(kOp, "w", "is float8 with a head axis, needs [N, K]; dequantise it first");
  if (p.block < 1) refuse_value(kOp, "block", "is ", p.block, ", needs at least 1");
  require_dtype(kOp, "weight_scale_inv", p.scale, {DType::float32, DType::float8_e8m0fnu});
  const auto blocks = [&](std::int64_t extent) { return extent / p.block + (extent % p.block != 0 ? 1 : 0); };
  require_shape(kOp, "weight_scale_inv", p.scale, {blocks(p.w.shape[1]), blocks(p.w.shape[2])},
                "[ceil(N / block), ceil(K / block)]");
  if (p.validate == Validate::trusted) return;
  for (std::int64_t i = 0; i < p.scale.shape[0]; ++i) {
    for (std::int64_t j = 0; j < p.scale.shape[1]; ++j) {
      const float s = scale_at(p.scale, i, j);
      if (std::isfinite(s) && s >= 0.0F) continue;
      refuse_value(kOp, "weight_scale_inv", "is ", s, " in row ", i, ", column ", j, ", needs finite scales >= 0");
    }
  }
}

void validate(const LinearParams& p) {
  require_dtype(kOp, "x", p.x, {DType::float32, DType::bfloat16});
  require_shape(kOp, "x", p.x, {kAny, kAny, kAny}, "[T, H, K]");
  require_inner_contiguous(kOp, "x", p.x);
  require_dtype(kOp, "w", p.w, {DType::float32, DType::bfloat16, DType::float16, DType::float8_e4m3fn});
  require_shape(kOp, "w", p.w, {p.x.shape[1], kAny, p.x.shape[2]}, "[H, N, K], H and K those of x");
  require_inner_contiguous(kOp, "w", p.w);
  require_scale(p);
  require_dtype(kOp, "out", p.out, {DType::float32, DType::bfloat16});
  require_output(kOp, "out", p.out, p.out.dtype, {p.x.shape[0], p.x.shape[1], p.w.shape[1]}, "[T, H, N]",
                 {&p.x, &p.w, &p.scale});
}

// Exact: 5 exponent bits fit into 8, and a subnormal half is a small integer times 2^-24.
float half_to_float(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7FFFU;
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  if (magnitude >= 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U | (magnitude & 0x3FFU) << 13);
  if (magnitude < 0x0400U) {
    const float value = static_cast<float>(magnitude) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112U << 23)));
}

bool narrow(DType dtype) { return dtype == DType::float32 || dtype == DType::bfloat16; }

Narrow narrow_of(DType dtype) { return dtype == DType::bfloat16 ? Narrow::bfloat16 : Narrow::float32; }

// The rest of a row of `width` floats behind its first `n`.
void zero_tail(float* row, std::int64_t n, std::int64_t width) { std::fill(row + n, row + width, 0.0F); }

// One task: all rows of one head against up to kColumns of its columns. Scratch of one slot.
struct Room {
  float* x;              // [kRows, kStride]
  float* w;              // [kColumns, kStride]
  float* acc;            // [kRows, kColumns, lanes]
  float* sums;           // [kColumns]
  const float* whole_x;  // [H, T, K rounded up to lanes], shared by all tasks, when T is a tile's rows at most
};

class Task {
 public:
  Task(const LinearParams& p, const Room& room, const LinearKernels& kernels, std::int64_t head, std::int64_t first)
      : p_(p),
        room_(room),
        kernels_(kernels),
        head_(head),
        first_(first),
        columns_(std::min(kColumns, p.w.shape[1] - first)) {}

  void run() const {
    if (p_.x.shape[0] <= kernels_.tile_rows && narrow(p_.w.dtype)) return few_rows();
    for (std::int64_t t = 0; t < p_.x.shape[0]; t += kRows) rows(t, std::min(kRows, p_.x.shape[0] - t));
  }

 private:
  std::int64_t w_at(std::int64_t c, std::int64_t k) const {
    return head_ * p_.w.strides[0] + (first_ + c) * p_.w.strides[1] + k;
  }

  void widen_float8(std::int64_t c, std::int64_t k, std::int64_t depth, float* out) const {
    const auto* codes = static_cast<const std::uint8_t*>(p_.w.data) + w_at(c, k);
    for (std::int64_t j = 0, n = 0; j < depth; j += n) {
      n = std::min(p_.block - (k + j) % p_.block, depth - j);
      const float scale = scale_at(p_.scale, (first_ + c) / p_.block, (k + j) / p_.block);
      quant_kernels().decode_rows({codes + j, kE4M3Table.data(), &scale, n, n, out + j, false});
    }
    for (std::int64_t j = 0; j < depth; ++j) out[j] = to_float(to_bfloat16(out[j]));
  }

  // Columns [0, columns_) x k [k, k + depth) into room_.w; columns up to the tile's edge are zeros.
  void widen_weights(std::int64_t k, std::int64_t depth, std::int64_t width) const {
    const auto* data = static_cast<const std::byte*>(p_.w.data);
    for (std::int64_t c = 0; c < round_up(columns_, kernels_.tile_columns); ++c) {
      float* out = room_.w + c * kStride;
      if (c >= columns_) {
        zero_tail(out, 0, width);
        continue;
      }
      const std::byte* row = data + w_at(c, k) * size_of(p_.w.dtype);
      switch (p_.w.dtype) {
        case DType::float8_e4m3fn: widen_float8(c, k, depth, out); break;
        case DType::float16:
          for (std::int64_t j = 0; j < depth; ++j) {
            out[j] = half_to_float(reinterpret_cast<const std::uint16_t*>(row)[j]);
          }
          break;
        default: indexer_kernels().decode(row, narrow_of(p_.w.dtype), nullptr, depth, out); break;
      }
      zero_tail(out, depth, width);
    }
  }

  void widen_rows(std::int64_t t, std::int64_t count, std::int64_t k, std::int64_t depth, std::int64_t width) const {
    const auto* data = static_cast<const std::byte*>(p_.x.data);
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int64_t at = (t + r) * p_.x.strides[0] + head_ * p_.x.strides[1] + k;
      float* out = room_.x + r * kStride;
      indexer_kernels().decode(data + at * size_of(p_.x.dtype), narrow_of(p_.x.dtype), nullptr, depth, out);
      zero_tail(out, depth, width);
    }
  }

  void rows(std::int64_t t, std::int64_t count) const {
    const std::int64_t stride = round_up(columns_, kernels_.tile_columns) * kernels_.lanes;
    std::fill_n(room_.acc, count * stride, 0.0F);
    for (std::int64_t k = 0; k < p_.x.shape[2]; k += kDepth) {
      const std::int64_t depth = std::min(kDepth, p_.x.shape[2] - k);
      const std::int64_t width = round_up(depth, kernels_.lanes);
      widen_weights(k, depth, width);
      widen_rows(t, count, k, depth, width);
      // A tile of columns stays in the first-level cache while the rows pass by.
      for (std::int64_t c = 0; c < columns_; c += kernels_.tile_columns) {
        for (std::int64_t r = 0; r < count; r += kernels_.tile_rows) {
          const int tile_rows = static_cast<int>(std::min<std::int64_t>(kernels_.tile_rows, count - r));
          kernels_.tile(room_.x + r * kStride, kStride, tile_rows, room_.w + c * kStride, kStride, width,
                        room_.acc + r * stride + c * kernels_.lanes, stride);
        }
      }
    }
    store(t, count, stride);
  }

  // A single tile of rows: nothing to reuse, so the weights are read where they lie, over the whole of k.
  void few_rows() const {
    const std::int64_t count = p_.x.shape[0];
    const std::int64_t depth = p_.x.shape[2];
    const std::int64_t whole = depth / kernels_.lanes * kernels_.lanes;
    const std::int64_t stride = round_up(columns_, kernels_.tile_columns) * kernels_.lanes;
    const std::int64_t width = round_up(depth, kernels_.lanes);
    const auto rows = static_cast<int>(count);
    std::fill_n(room_.acc, count * stride, 0.0F);
    const float* x = room_.whole_x + head_ * count * width;
    for (std::int64_t c = 0; c < columns_; c += kernels_.tile_columns) {
      const void* columns[kMaxTileColumns];
      for (int i = 0; i < kernels_.tile_columns; ++i) {
        const std::int64_t at = w_at(std::min(c + i, columns_ - 1), 0);
        columns[i] = static_cast<const std::byte*>(p_.w.data) + at * size_of(p_.w.dtype);
      }
      float* acc = room_.acc + c * kernels_.lanes;
      kernels_.tile_in_place(x, width, rows, columns, narrow_of(p_.w.dtype), whole, acc, stride);
    }
    if (whole < depth) {
      widen_weights(whole, depth - whole, width - whole);
      for (std::int64_t c = 0; c < columns_; c += kernels_.tile_columns) {
        kernels_.tile(x + whole, width, rows, room_.w + c * kStride, kStride, width - whole,
                      room_.acc + c * kernels_.lanes, stride);
      }
    }
    store(0, count, stride);
  }

  void store(std::int64_t t, std::int64_t count, std::int64_t stride) const {
    for (std::int64_t r = 0; r < count; ++r) {
      kernels_.reduce(room_.acc + r * stride, columns_, room_.sums);
      const std::int64_t at = (t + r) * p_.out.strides[0] + head_ * p_.out.strides[1] + first_;
      if (p_.out.dtype == DType::bfloat16) {
        row_from_float(room_.sums, static_cast<BFloat16*>(p_.out.data) + at, columns_);
      } else {
        row_from_float(room_.sums, static_cast<float*>(p_.out.data) + at, columns_);
      }
    }
  }

  const LinearParams& p_;
  const Room& room_;
  const LinearKernels& kernels_;
  const std::int64_t head_;
  const std::int64_t first_;
  const std::int64_t columns_;
};

// A thread is worth waking for some 2^18 products, tens of microseconds.
int useful_threads(const LinearParams& p) {
  constexpr double kGrain = 1 << 18;
  const double products = static_cast<double>(p.out.size()) * static_cast<double>(p.x.shape[2]);
  if (products >= kGrain * 64) return p.threads;
  const int most = 1 + static_cast<int>(products / kGrain);
  return p.threads == 0 ? std::min(num_threads(), most) : std::min(p.threads, most);
}

// x as float32 [H, T, width], the columns past K zeros.
Scratch<float> widen_all(const LinearParams& p, std::int64_t width) {
  Scratch<float> wide(p.x.shape[0] * p.x.shape[1] * width);
  for (std::int64_t t = 0; t < p.x.shape[0]; ++t) {
    for (std::int64_t h = 0; h < p.x.shape[1]; ++h) {
      float* out = wide.data() + (h * p.x.shape[0] + t) * width;
      const std::int64_t at = t * p.x.strides[0] + h * p.x.strides[1];
      const auto* row = static_cast<const std::byte*>(p.x.data) + at * size_of(p.x.dtype);
      indexer_kernels().decode(row, narrow_of(p.x.dtype), nullptr, p.x.shape[2], out);
      zero_tail(out, p.x.shape[2], width);
    }
  }
  return wide;
}

}  // namespace

void linear(const LinearParams& p) {
  validate(p);
  if (p.out.size() == 0) return;
  const LinearKernels& kernels = linear_kernels();
  const std::int64_t rows = std::min(kRows, p.x.shape[0]);
  const std::int64_t blocks = ceil_div(p.w.shape[1], kColumns);
  const std::int64_t tasks = p.x.shape[1] * blocks;
  const std::int64_t acc = rows * kColumns * kernels.lanes;
  const std::int64_t room = (rows + kColumns) * kStride + acc + kColumns;
  const int threads = useful_threads(p);
  const Scratch<float> scratch(team_size(tasks, threads) * room);
  const bool few = p.x.shape[0] <= kernels.tile_rows && narrow(p.w.dtype);
  const Scratch<float> wide = few ? widen_all(p, round_up(p.x.shape[2], kernels.lanes)) : Scratch<float>(0);
  parallel_for(tasks, threads, [&](std::int64_t task, int slot) {
    float* at = scratch.data() + slot * room;
    float* w = at + rows * kStride;
    const Room mine{at, w, w + kColumns * kStride, w + kColumns * kStride + acc, wide.data()};
    Task(p, mine, kernels, task / blocks, task % blocks * kColumns).run();
  });
}

}  // namespace sparsespan
