#include "kernels/transform.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const TransformKernels generic_transform_kernels;

const TransformKernels& transform_kernels() {
  return choose_kernels<TransformKernels>({&generic_transform_kernels, nullptr, nullptr, nullptr});
}

}  // namespace sparsespan
