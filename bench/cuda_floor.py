"""The counted floor of full separation of variables on a GPU, from instructions alone.

One sample of d variables takes, for each variable, a step (lattice point, its tent, Phi, the
inverse of Phi, the product, and the 15 multiply-adds of its place in a block of 16 rows), and
beyond that d^2 / 2 multiply-adds with the loads that feed them. The constants were counted in the
sm_90 code of a prototype built by nvcc 13.0 with this project's kind of Phi and inverse:

- float32, limited by issue (4 schedulers of 32 lanes in each multiprocessor, one instruction a
  cycle): 81 instructions a step, 83 in the loop of 64 multiply-adds.
- float64, limited by the double-precision pipe, which takes an instruction of a warp every 2 cycles:
  115 such instructions a step and 64 in the loop, so 230 and 128 cycles.

No memory traffic, launch or factorisation is in it. At 132 multiprocessors and 1.98 GHz it gives
for N = 10^4 points 2.3e5 and 1.0e5 problems/s at d = 99, 4.6e3 and 2.7e3 at d = 999 (float32 and
float64). Devices with another number of double-precision units need another `pipe_cycles`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    step: float  # scheduler cycles of a warp for one variable of one sample a lane
    multiply_add: float  # and for one multiply-add with its loads

    def cycles(self, d):
        return self.step * d + self.multiply_add * d * d / 2


COUNTS = {"float32": Count(81, 83 / 64), "float64": Count(115 * 2, 64 * 2 / 64)}
SCHEDULERS, LANES = 4, 32


def problems_per_s(d, points, dtype, multiprocessors, clock_hz, count=None):
    """Problems of d sampled variables a second at `points` points each, all shifts together."""
    lanes_per_s = multiprocessors * SCHEDULERS * LANES * clock_hz
    return lanes_per_s / (points * (count or COUNTS[dtype]).cycles(d))
