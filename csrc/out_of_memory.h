// Tensors that ops allocate, and the error where memory does not hold them: of an allocation that
// fails torch's stable interface says that a call failed, and neither the error's class nor its
// text. mvnrob/_ops.py makes torch.OutOfMemoryError of it.
#pragma once
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "torch_utils.h"

namespace mvnrob {

class OutOfMemory : public std::exception {
 public:
  // what_for: such as " for one row"
  explicit OutOfMemory(int64_t bytes, const std::string& what_for = "")
      : what_(std::to_string(bytes) + " bytes" + what_for) {}
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  std::string what_;
};

namespace memory {

inline int64_t size_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Float:
      return 4;
    default:
      return 8;
  }
}

// Bytes, the largest number where there are more. `extent(d)` is the length of dimension d.
template <class Extent>
int64_t bytes_of(int64_t dims, const Extent& extent, ScalarType dtype) {
  int64_t bytes = size_of(dtype);
  for (int64_t d = 0; d < dims; ++d)
    if (__builtin_mul_overflow(bytes, int64_t(extent(d)), &bytes))
      return std::numeric_limits<int64_t>::max();
  return bytes;
}

template <class Make>
Tensor shaped_like(const Tensor& t, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    throw OutOfMemory(bytes_of(t.dim(), [&](int64_t d) { return t.size(d); }, t.scalar_type()));
  }
}

// Runs an op's kernel; what it could not allocate is an error in the op's own words.
template <class Kernel>
void named(const char* op, const Kernel& kernel) {
  const auto refuse = [op](const char* what) {
    std::string text = op;
    if (text.back() == '_') text.pop_back();  // as in the op's other errors
    text = text + ": memory must hold " + what + ", got an allocation that failed";
    throw std::runtime_error(text);
  };
  try {
    kernel();
  } catch (const OutOfMemory& error) {
    refuse(error.what());
  } catch (const std::bad_alloc&) {
    refuse("its threads' workspaces");
  }
}

}  // namespace memory

// Of the dtype of `like` where none is given.
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape,
                         std::optional<ScalarType> dtype = std::nullopt) {
  try {
    return torch::stable::new_empty(like, shape, dtype);
  } catch (const std::exception&) {
    throw OutOfMemory(memory::bytes_of(
        int64_t(shape.size()), [&](int64_t d) { return shape.begin()[d]; },
        dtype.value_or(like.scalar_type())));
  }
}

// The tensor itself where it is contiguous.
inline Tensor contiguous_of(const Tensor& t) {
  return memory::shaped_like(t, [&] { return torch::stable::contiguous(t); });
}

inline std::optional<Tensor> contiguous_of(const std::optional<Tensor>& t) {
  if (!t.has_value()) return std::nullopt;
  return contiguous_of(*t);
}

// Of a contiguous tensor's shape and dtype.
inline Tensor tensor_like(const Tensor& t) {
  return memory::shaped_like(t, [&] { return torch::stable::empty_like(t); });
}

}  // namespace mvnrob

// Registers the kernel of an op for a backend.
#define MVNROB_IMPL(m, op, function)                                                 \
  m.impl(op, [](StableIValue* stack, uint64_t inputs, uint64_t outputs) {            \
    mvnrob::memory::named(op, [&] { TORCH_BOX(function)(stack, inputs, outputs); }); \
  })
