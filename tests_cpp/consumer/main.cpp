// A user of the installed C++ package: transforms one row and checks the involution H(Hx) = x.

#include <cmath>
#include <cstdio>
#include <vector>

#include <sparsespan/core/build_info.h>
#include <sparsespan/transform/hadamard.h>

namespace {

sparsespan::Tensor row(std::vector<float>& values) {
  sparsespan::Tensor t;
  t.data = values.data();
  t.dtype = sparsespan::DType::float32;
  t.rank = 2;
  t.shape = {1, static_cast<std::int64_t>(values.size())};
  t.strides = {static_cast<std::int64_t>(values.size()), 1};
  t.writable = true;
  t.present = true;
  return t;
}

}  // namespace

int main() {
  std::vector<float> x(128);
  for (int i = 0; i < 128; ++i) x[i] = static_cast<float>(i % 7) - 3.0F;
  std::vector<float> y(128);
  std::vector<float> z(128);
  const float scale = 1.0F / std::sqrt(128.0F);
  sparsespan::hadamard_transform({.x = row(x), .out = row(y), .scale = scale});
  sparsespan::hadamard_transform({.x = row(y), .out = row(z), .scale = scale});
  for (int i = 0; i < 128; ++i) {
    if (std::fabs(z[i] - x[i]) > 1e-5F) return 1;
  }
  for (const auto& [key, value] : sparsespan::build_info()) std::printf("%s: %s\n", key.c_str(), value.c_str());
  return 0;
}
