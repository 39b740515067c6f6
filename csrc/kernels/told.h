// What kernels tell the host of the launches that they belong to (tell_host of device.h): a number
// below kTold, added to the ticket of those launches. Tickets are multiples of kTold.
#pragma once
#include <cstdint>

namespace mvnrob::kernels {

constexpr uint64_t kTold = 256;
constexpr uint64_t kBegun = 0;  // the device is at work on them
// Between: so many rounds have begun.
constexpr uint64_t kAllDone = 255;  // whatever else may be launched has nothing to do

}  // namespace mvnrob::kernels
