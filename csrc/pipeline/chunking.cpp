#include "pipeline/chunking.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

constexpr std::size_t kLeastSamples = 8;

// min |X k - y| with three columns, by Gram-Schmidt on columns of length 1: no squared condition number, one fixed
// order of additions. A column that is (nearly) a mix of the others comes back as `dependent`.
struct Fit {
  std::array<double, 3> k{};
  int dependent = -1;
};

double dot(const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

Fit least_squares(std::vector<std::vector<double>> columns, std::vector<double> y) {
  const int n = static_cast<int>(columns.size());
  std::array<double, 3> scale{};
  std::array<std::array<double, 3>, 3> r{};
  Fit fit;
  for (int j = 0; j < n; ++j) {
    scale[j] = std::sqrt(dot(columns[j], columns[j]));
    if (scale[j] == 0.0) return fit.dependent = j, fit;
    for (double& v : columns[j]) v /= scale[j];
    // Twice: the second pass removes what rounding left of the first.
    for (int pass = 0; pass < 2; ++pass) {
      for (int i = 0; i < j; ++i) {
        const double share = dot(columns[i], columns[j]);
        r[i][j] += share;
        for (std::size_t t = 0; t < y.size(); ++t) columns[j][t] -= share * columns[i][t];
      }
    }
    r[j][j] = std::sqrt(dot(columns[j], columns[j]));
    if (r[j][j] < 1e-9) return fit.dependent = j, fit;
    for (double& v : columns[j]) v /= r[j][j];
  }
  std::array<double, 3> rhs{};
  for (int j = 0; j < n; ++j) {
    rhs[j] = dot(columns[j], y);
    for (std::size_t t = 0; t < y.size(); ++t) y[t] -= rhs[j] * columns[j][t];
  }
  for (int j = n - 1; j >= 0; --j) {
    for (int i = j + 1; i < n; ++i) rhs[j] -= r[j][i] * fit.k[i];
    fit.k[j] = rhs[j] / r[j][j];
  }
  for (int j = 0; j < n; ++j) fit.k[j] /= scale[j];
  return fit;
}

void require_rule(const ChunkRule& rule) {
  const auto at_least = [](std::string_view name, std::int64_t has, std::int64_t least) {
    if (has < least) refuse_value("chunk_sizes", name, "is ", has, ", needs at least ", least);
  };
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  at_least("total", rule.total, 0);
  at_least("first", rule.first, 1);
  at_least("align", rule.align, 1);
  at_least("prefix", rule.prefix, 0);
  if (rule.floor != -1) at_least("floor", rule.floor, 1);
  if (rule.cap != -1) at_least("cap", rule.cap, 1);
  if (rule.total > kMost || rule.prefix > kMost || rule.first > kMost || rule.align > kMost) {
    refuse_value("chunk_sizes", "total", "is ", rule.total, " (prefix ", rule.prefix, ", first ", rule.first,
                 ", align ", rule.align, "), needs at most ", kMost);
  }
  if (rule.cap != -1 && rule.cap < rule.align) {
    refuse_value("chunk_sizes", "cap", "is ", rule.cap, ", needs at least one unit of align, ", rule.align);
  }
  if (!(rule.smooth >= 0.0 && rule.smooth <= 1.0)) {
    refuse_value("chunk_sizes", "smooth", "is ", rule.smooth, ", needs 0 (fixed chunks) to 1 (equal costs)");
  }
  if (rule.smooth > 0.0 && !(rule.cost.a > 0.0 && std::isfinite(rule.cost.a))) {
    refuse_value("chunk_sizes", "cost", "has a = ", rule.cost.a,
                 ", needs a > 0: a cost that does not grow with the prefix calls for fixed chunks (smooth = 0)");
  }
  if (!(rule.cost.b >= 0.0 && std::isfinite(rule.cost.b))) {
    refuse_value("chunk_sizes", "cost", "has b = ", rule.cost.b, ", needs 0 or more");
  }
}

}  // namespace

ChunkCost fit_chunk_cost(const std::vector<double>& lengths, const std::vector<double>& prefixes,
                         const std::vector<double>& seconds) {
  const std::size_t n = lengths.size();
  if (prefixes.size() != n || seconds.size() != n) {
    refuse_value("fit_chunk_cost", "seconds", "has ", seconds.size(), " values and prefixes has ", prefixes.size(),
                 ", both need one for each of the ", n, " lengths");
  }
  if (n < kLeastSamples)
    refuse_value("fit_chunk_cost", "lengths", "has ", n, " samples, needs at least ", kLeastSamples);
  std::vector<std::vector<double>> columns(3, std::vector<double>(n, 1.0));
  for (std::size_t i = 0; i < n; ++i) {
    if (!(lengths[i] > 0.0 && prefixes[i] >= 0.0 && std::isfinite(seconds[i]))) {
      refuse_value("fit_chunk_cost", "lengths", "has the sample (", lengths[i], ", ", prefixes[i], ", ", seconds[i],
                   ") at ", i, ", needs length > 0, prefix >= 0 and finite seconds");
    }
    columns[0][i] = lengths[i] * prefixes[i] + 0.5 * lengths[i] * lengths[i];
    columns[1][i] = lengths[i];
  }
  Fit fit = least_squares(columns, seconds);
  if (fit.dependent >= 0) {
    refuse_value("fit_chunk_cost", "lengths", "and prefixes do not vary enough to tell a, b and c apart");
  }
  if (!(fit.k[0] > 0.0)) {
    refuse_value("fit_chunk_cost", "seconds", "give a = ", fit.k[0],
                 ", needs a > 0: these times do not grow with the prefix, use fixed chunks");
  }
  return {fit.k[0], std::max(0.0, fit.k[1]), fit.k[2]};
}

std::int64_t next_chunk(const ChunkRule& rule, std::int64_t done) {
  const double c0 = static_cast<double>(rule.first);
  double x = c0;
  if (rule.smooth > 0.0) {
    // f(l) = A l^2 + B l, A = a / 2: the chunk that costs what the first one cost from an empty prefix.
    const double A = 0.5 * rule.cost.a;
    const double p = 2.0 * A * static_cast<double>(done) + rule.cost.b;
    const double target = A * c0 * c0 + rule.cost.b * c0;
    // The positive root of A x^2 + p x - target, in the form that does not cancel.
    const double equal = 2.0 * target / (p + std::sqrt(p * p + 4.0 * A * target));
    x = c0 + rule.smooth * (equal - c0);
  }
  const std::int64_t floor = rule.floor == -1 ? rule.first / 4 : rule.floor;
  auto size = static_cast<std::int64_t>(std::max(x, static_cast<double>(floor)));
  if (rule.cap != -1) size = std::min(size, rule.cap);
  return std::max(rule.align, size / rule.align * rule.align);
}

std::vector<std::int64_t> chunk_sizes(const ChunkRule& rule) {
  require_rule(rule);
  std::vector<std::int64_t> sizes;
  constexpr std::size_t kMost = 1'000'000;
  for (std::int64_t left = rule.total; left > 0; left -= sizes.back()) {
    if (sizes.size() == kMost)
      refuse_value("chunk_sizes", "first", "is ", rule.first, ": more than ", kMost, " chunks");
    sizes.push_back(std::min(left, next_chunk(rule, rule.prefix + rule.total - left)));
  }
  return sizes;
}

}  // namespace sparsespan::pipeline
