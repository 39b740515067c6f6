// cp.async groups of one thread: a copy takes place at the wait that covers its group, not before.
//
// Until then the destination holds 0xFF bytes, as on the device it holds anything: a body that
// reads too early, or that lets a copy start while others still read its destination, computes NaN.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace mvnrob::shim {

class CopyQueue {
 public:
  void clear() {
    copies_.clear();
    groups_ = 0;
  }

  // 16 bytes at most; zeros where `from` is null.
  void copy(void* to, const void* from, unsigned size) {
    Copy copy{to, groups_, size, {}};
    if (from) std::memcpy(copy.bytes, from, size);
    std::memcpy(to, kUndefined, size);
    copies_.push_back(copy);
  }

  void commit() { ++groups_; }

  // All but the latest `pending` committed groups arrive.
  void wait(unsigned pending) {
    size_t done = 0;
    while (done < copies_.size() && copies_[done].group + pending < groups_) {
      std::memcpy(copies_[done].to, copies_[done].bytes, copies_[done].size);
      ++done;
    }
    copies_.erase(copies_.begin(), copies_.begin() + long(done));
  }

  // At the end of the thread.
  void check_done(unsigned thread) const {
    if (copies_.empty()) return;
    throw std::runtime_error("thread " + std::to_string(thread) + " has ended with " +
                             std::to_string(copies_.size()) +
                             " asynchronous copies that no copy_async_wait covers");
  }

 private:
  struct Copy {
    void* to;
    uint64_t group;
    unsigned size;
    unsigned char bytes[16];
  };
  // Copied, not memset: GCC expands a small memset where ThreadSanitizer does not see it.
  static constexpr unsigned char kUndefined[16] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
                                                   0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
  std::vector<Copy> copies_;
  uint64_t groups_ = 0;
};

}  // namespace mvnrob::shim
