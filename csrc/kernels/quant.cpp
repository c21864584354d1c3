#include "kernels/quant.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const QuantKernels generic_quant_kernels;

const QuantKernels& quant_kernels() {
  return choose_kernels<QuantKernels>({&generic_quant_kernels, nullptr, nullptr, nullptr});
}

}  // namespace sparsespan
