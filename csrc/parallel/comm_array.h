#pragma once

// Arrays that travel between ranks.

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "core/scratch.h"

namespace sparsespan {

// A contiguous, uninitialised array. Whoever moves it holds on to its memory: a peer may still read it when this rank's
// call has ended in an error.
class CommArray {
 public:
  CommArray(std::string_view op, DType dtype, std::initializer_list<std::int64_t> shape) {
    tensor_.dtype = dtype;
    tensor_.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), tensor_.shape.begin());
    std::int64_t elements = 1;
    for (int axis = tensor_.rank - 1; axis >= 0; --axis) {
      tensor_.strides[axis] = elements;
      elements = checked_product(op, "the size of an exchanged array", elements, tensor_.shape[axis]);
    }
    memory_ = std::make_shared<Scratch<std::byte>>(checked_product(op, "an exchanged array", elements, size_of(dtype)));
    tensor_.data = memory_->data();
    tensor_.writable = tensor_.present = true;
  }
  const Tensor& tensor() const { return tensor_; }
  template <class T>
  T* data() const {
    return static_cast<T*>(tensor_.data);
  }
  std::shared_ptr<void> memory() const { return memory_; }

 private:
  Tensor tensor_;
  std::shared_ptr<Scratch<std::byte>> memory_;
};

// The caller's options for an operation that also touches these arrays.
template <class... Arrays>
CommOptions touching(const CommOptions& options, const Arrays&... arrays) {
  CommOptions more = options;
  more.keep = std::make_shared<std::vector<std::shared_ptr<void>>>(
      std::vector<std::shared_ptr<void>>{options.keep, arrays.memory()...});
  return more;
}

}  // namespace sparsespan
