#pragma once

// Merging of softmax states and decoding of KV rows. Include after kernels/body/attention.h.

#include <stdint.h>
#include <string.h>

namespace {

using sparsespan::AttentionKernels;
using sparsespan::StatePair;

void mix(float* a, float weight_a, const float* b, float weight_b, int64_t n) noexcept {
  if (weight_b == 0.0F) {
    if (weight_a == 1.0F) return;
    for (int64_t i = 0; i < n; ++i) a[i] = weight_a == 0.0F ? 0.0F : a[i] * weight_a;
  } else if (weight_a == 0.0F) {
    for (int64_t i = 0; i < n; ++i) a[i] = b[i] * weight_b;
  } else {
    for (int64_t i = 0; i < n; ++i) a[i] = a[i] * weight_a + b[i] * weight_b;
  }
}

void merge(const StatePair& p) noexcept {
  const Vec::Float minus_inf = Vec::broadcast(-__builtin_inff());
  const int64_t width = round_to(p.d_v, Vec::kLanes);
  for (int64_t col = 0; col < p.cols; col += Vec::kLanes) {
    const Vec::Float m_a = Vec::load(p.m + col);
    const Vec::Float m_b = Vec::load(p.m_other + col);
    const Vec::Float m = Vec::max(m_a, m_b);
    const Vec::Float shift = Vec::select_less(minus_inf, m, m, Vec::zero());
    const Vec::Float w_a = exp_vec(m_a - shift);
    const Vec::Float w_b = exp_vec(m_b - shift);
    // NaN * 0 stays NaN here: a NaN that a row's own data made is not lost with its block's weight.
    Vec::store(p.l + col, Vec::load(p.l + col) * w_a + Vec::load(p.l_other + col) * w_b);
    Vec::store(p.m + col, m);
    float weights[2 * Vec::kLanes];
    Vec::store(weights, w_a);
    Vec::store(weights + Vec::kLanes, w_b);
    for (int64_t c = col; c < col + Vec::kLanes && c < p.cols; ++c) {
      mix(p.o + c * p.o_stride, weights[c - col], p.o_other + c * p.o_stride, weights[c - col + Vec::kLanes], width);
    }
  }
}

void exp_array(float* x, int64_t n) noexcept {
  for (int64_t i = 0; i < n; i += Vec::kLanes) {
    float lanes[Vec::kLanes] = {};
    const int64_t count = n - i < Vec::kLanes ? n - i : Vec::kLanes;
    memcpy(lanes, x + i, (unsigned long)count * sizeof(float));
    Vec::store(lanes, exp_vec(Vec::load(lanes)));
    memcpy(x + i, lanes, (unsigned long)count * sizeof(float));
  }
}

void load_bf16(const uint16_t* in, float* out, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) out[i] = __builtin_bit_cast(float, (uint32_t)in[i] << 16);
}

bool finite_bf16(const uint16_t* x, int64_t n) noexcept {
  uint16_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= (uint16_t)((x[i] & 0x7F80U) == 0x7F80U);
  return bad == 0;
}

bool finite_f32(const float* x, int64_t n) noexcept {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= (uint32_t)((__builtin_bit_cast(uint32_t, x[i]) & 0x7F800000U) == 0x7F800000U);
  return bad == 0;
}

// e4m3 by bits, without a subnormal operand (those cost a hundred cycles on some CPUs). The 7 magnitude bits go to the
// top of a float32's fraction and exponent, rebiased by 120; for codes 0..7 the exponent is one too small for a hidden
// bit that should not be there, so one more is added and 2^-6 taken off, exactly.
void load_fp8(const uint8_t* in, float scale, float* out, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t code = in[i];
    const uint32_t magnitude = code & 0x7FU;
    const uint32_t subnormal = magnitude < 8U ? 0xFFFFFFFFU : 0U;
    const uint32_t nan = magnitude == 0x7FU ? 0x7FC00000U : 0U;
    const float biased = __builtin_bit_cast(float, (magnitude << 20) + (120U << 23) + (subnormal & (1U << 23)));
    const float hidden = __builtin_bit_cast(float, subnormal & 0x3C800000U);
    const uint32_t bits = __builtin_bit_cast(uint32_t, biased - hidden) | ((code & 0x80U) << 24) | nan;
    const uint32_t u = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, bits) * scale);
    const uint32_t rounded = (u + 0x7FFFU + ((u >> 16) & 1U)) & 0xFFFF0000U;
    const uint32_t is_nan = (u & 0x7FFFFFFFU) > 0x7F800000U ? 0xFFFFFFFFU : 0U;
    out[i] = __builtin_bit_cast(float, (is_nan & (u | 0x00400000U)) | (~is_nan & rounded));
  }
}

constexpr AttentionKernels kTable = {.panel = kPanel,
                                     .attend = attend,
                                     .merge = merge,
                                     .mix = mix,
                                     .exp = exp_array,
                                     .load_bf16 = load_bf16,
                                     .finite_bf16 = finite_bf16,
                                     .finite_f32 = finite_f32,
                                     .load_fp8 = load_fp8};

}  // namespace
