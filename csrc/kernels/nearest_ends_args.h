#pragma once
#include <cstdint>

namespace mvnrob::kernels {

struct NearestEndsArgs {
  const float* limit;  // [inputs, rows]
  const float* table;  // [inputs, rows, columns]
  const float* draws;  // [count, stride], stride >= columns
  float* upper;        // [signs, count, inputs]
  float* lower;
  int64_t* above;  // where they are, [signs, count, inputs], or null
  int64_t* below;
  int64_t stride;
  // rows before `rising` rise, the others fall; columns from `flipped` on are taken with the other
  // sign
  int32_t inputs, rows, rising, columns, exact, flipped, count;
  int32_t slot[2];  // where the results go, of the columns from `exact` on with + and with -
};

}  // namespace mvnrob::kernels
