#pragma once

// Memory of plans. An engine makes a plan per step and drops the last one; fresh pages cost more than filling them, so
// a few dropped buffers are kept for the next plan.

#include <cstdint>

namespace sparsespan {

// Uninitialised int32 words, owned. At most 32 MiB of dropped buffers stay with the process.
class PlanBuffer {
 public:
  explicit PlanBuffer(std::int64_t count);
  ~PlanBuffer();
  PlanBuffer(const PlanBuffer&) = delete;
  PlanBuffer& operator=(const PlanBuffer&) = delete;

  std::int32_t* data() const { return data_; }
  std::int64_t size() const { return count_; }

 private:
  std::int64_t count_;
  std::int64_t capacity_;
  std::int32_t* data_;
};

}  // namespace sparsespan
