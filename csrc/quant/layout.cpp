#include "quant/layout.h"

#include <algorithm>
#include <string>

namespace sparsespan {

namespace {

bool storage_fits(const Tensor& cache, const KvLayoutInfo& info) {
  if (cache.dtype == info.storage) return true;
  return info.storage == DType::uint8 && (cache.dtype == DType::int8 || cache.dtype == DType::float8_e4m3fn);
}

// The token axes lie one behind the other inside a page.
bool tokens_are_packed(const Tensor& cache) {
  std::int64_t expected = 1;
  for (int i = cache.rank - 1; i >= 1; --i) {
    if (cache.shape[i] > 1 && cache.strides[i] != expected) return false;
    expected *= cache.shape[i];
  }
  return cache.shape[0] <= 1 || cache.strides[0] >= expected;
}

bool shape_fits(const Tensor& cache, const KvLayoutInfo& info, std::int64_t page_size) {
  const auto& s = cache.shape;
  if (cache.rank == 2) return s[1] == page_size * info.width;
  if (cache.rank == 3) return s[1] == page_size && s[2] == info.width;
  return cache.rank == 4 && s[1] == page_size && s[2] == 1 && s[3] == info.width;
}

}  // namespace

KvLayout parse_kv_layout(std::string_view op, std::string_view argument, std::string_view name) {
  std::string known;
  for (const auto& info : detail::kKvLayouts) {
    if (info.name == name) return info.layout;
    if (!known.empty()) known += ", ";
    known += info.name;
  }
  refuse_value(op, argument, "is \"", name, "\", needs one of ", known);
}

std::int64_t page_size_of(std::string_view op, std::string_view argument, const Tensor& cache, KvLayout layout) {
  const KvLayoutInfo& info = layout_info(layout);
  if (cache.rank == 3 || cache.rank == 4) return cache.shape[1];
  if (cache.rank == 2 && cache.shape[1] > 0 && cache.shape[1] % info.width == 0) return cache.shape[1] / info.width;
  refuse_value(op, argument, "has shape ", cache.shape_text(), ", needs [pages, page_size, ", info.width,
               "] for layout ", info.name);
}

PagedCache require_paged_cache(std::string_view op, std::string_view argument, const Tensor& cache, KvLayout layout,
                               std::int64_t page_size) {
  const KvLayoutInfo& info = layout_info(layout);
  if (page_size < 1) refuse_value(op, "page_size", "is ", page_size, ", needs at least 1");
  if (!storage_fits(cache, info)) {
    refuse_type(op, argument, "has dtype ", name_of(cache.dtype), ", needs ", name_of(info.storage), " for layout ",
                info.name);
  }
  checked_product(op, "page_size", page_size, info.bytes_per_token());
  if (!shape_fits(cache, info, page_size)) {
    refuse_value(op, argument, "has shape ", cache.shape_text(), ", needs [pages, ", page_size, ", ", info.width,
                 "] for layout ", info.name, " and page_size ", page_size);
  }
  if (!tokens_are_packed(cache)) {
    refuse_value(op, argument,
                 "has tokens that do not lie one behind the other in a page; only whole pages may be padded");
  }
  const int element = size_of(cache.dtype);
  const std::int64_t stride = cache.shape[0] > 1 ? cache.strides[0] : page_size * info.width;
  return {.data = static_cast<std::byte*>(cache.data),
          .layout = layout,
          .pages = cache.shape[0],
          .page_size = page_size,
          .page_stride = stride * element,
          .token_stride = info.token_stride()};
}

}  // namespace sparsespan
