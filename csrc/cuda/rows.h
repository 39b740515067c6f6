// Limits and matrices of a batch on the torch side: what kernels read of them, and results for
// them.
#pragma once
#include <initializer_list>
#include <optional>

#include "out_of_memory.h"

namespace mvnrob::cuda {

// Holds what the arguments point to: limits contiguous, the matrix as it lies.
class Rows {
 public:
  Rows(const Tensor& upper, const Tensor& cov, const std::optional<Tensor>& lower)
      : upper_(contiguous_of(upper)), cov_(cov), lower_(contiguous_of(lower)) {}

  // An op's arguments with the input set and all else zero. checks.h holds n to 30 bits.
  template <class Args>
  Args arguments() const {
    Args a{};
    a.rows = upper_.size(0);
    a.n = int32_t(upper_.size(1));
    a.is_double = upper_.scalar_type() == ScalarType::Double;
    a.upper = upper_.const_data_ptr();
    a.lower = lower_.has_value() ? lower_->const_data_ptr() : nullptr;
    a.cov = cov_.const_data_ptr();
    a.cov_strides = {cov_.stride(0), cov_.stride(1), cov_.stride(2)};
    return a;
  }

  // Tensors for results: of the input's dtype or another.
  Tensor empty(std::initializer_list<int64_t> shape) const { return new_tensor(upper_, shape); }
  Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype) const {
    return new_tensor(upper_, shape, dtype);
  }

  int32_t device() const { return upper_.get_device_index(); }

 private:
  Tensor upper_, cov_;
  std::optional<Tensor> lower_;
};

}  // namespace mvnrob::cuda
