// From a factor to the blocks that the sampler executes. Torch-free.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/mvn_cdf_factor.h"
#include "cpu/mvn_cdf_program.h"

namespace mvnrob {

// Owns the arrays of a Program.
template <class scalar_t>
class PackedProgram {
 public:
  // The pivots and their groups are sampled, the live rows complete.
  void pack(const Factor& factor, double skip_limit);
  // Its samples are tilted from now on; the tilt must outlive them.
  void set_tilt(const scalar_t* tilt, double log_unit) {
    program_.tilt = tilt;
    program_.log_unit = log_unit;
  }
  const Program<scalar_t>& program() const { return program_; }
  double cost() const { return cost_; }  // per sample, in units of one multiply-add
  // Of each of the program's rows, its position in the factor.
  const std::vector<int64_t>& sampled_rows() const { return sampled_.position; }
  const std::vector<int64_t>& completion_rows() const { return completion_.position; }

 private:
  struct List {
    std::vector<Block> blocks;
    std::vector<scalar_t> coef, upper, lower;
    std::vector<uint8_t> flags;
    std::vector<int64_t> position;
    RowList<scalar_t> view() const {
      return {blocks.data(), int64_t(blocks.size()), coef.data(),
              upper.data(),  lower.data(),           flags.data()};
    }
  };
  List sampled_, completion_;
  Program<scalar_t> program_{};
  double cost_ = 0;
};

}  // namespace mvnrob
