"""The least that a GPU needs for slopes of samples (mvn_cdf_pathwise) and for pivoted_cholesky.

Reckoned, not counted: the multiply-adds that a method cannot do without (csrc/kernels/mvn_cdf_pathwise.h,
mvn_cdf_pathwise_blocked.h, pivoted_cholesky.h), one instruction each for a warp, and its bytes. A pair of
place and pivot takes a sample of mvn_cdf_pathwise one multiply-add forth, one back and, with slopes to cov,
one of the products over samples. Up to 32 pivots, for every kSmallRows pairs it loads y forth, and loads and
stores its bar back; beyond, it loads y and a place's bar once for every outer block of rows, and the products
over samples load both for each of their tiles. Besides, a pivot's y, slopes and bar are stored, and slopes
and bar loaded (upper limits only). What all resident blocks keep goes to memory where the L2 cache cannot
hold it. The way from the products to cov is 5/6 n^3
multiply-adds on the tensor cores for each of eight contrasts, and seven times as many numbers read or written
as a contrast's bars have. A factor of k columns takes
k^2 (n / 2 - k / 3) multiply-adds in float64 and reads k columns of its matrix.
"""

import re

from bench import sass
from bench.cuda_floor import SCHEDULERS
from bench.cuda_floor_tensor import DRAM, L2, L2_BYTES

SIZES = {"float32": 4, "float64": 8}
# Lanes of a scheduler that do a multiply-add.
FMA = {"float32": 32, "float64": 16}
RESIDENT = r"kResidentBlocks = sizeof\(scalar_t\) == 4 \? "


def constant(file, pattern):
    return int(re.search(pattern, (sass.ROOT / "csrc" / file).read_text())[1])


def seconds(n, points, dtype, to_cov, device):
    """{limiter: seconds of a problem} of n variables, all of them pivots."""
    size, pairs = SIZES[dtype], n**2 / 2
    tile = constant("plan/estimate.h", r"kTileSamples = (\d+);")
    if n <= constant("kernels/mvn_cdf_data.h", r"kMaxSmallPivots = (\d+)"):
        rows = constant("kernels/mvn_cdf_data.h", r"kSmallRows = (\d+)")
        blocks = constant("kernels/mvn_cdf_pathwise.h", RESIDENT + r"(\d+)")
        numbers, kinds = 3 * pairs / rows, 2  # y and its bar
    else:
        rows = constant("kernels/mvn_cdf_data.h", r"kOuterRows = (\d+)") // size
        tile = constant("kernels/mvn_cdf_data.h", r"kBlockedThreads = (\d+)")
        by_type = r"resident_blocks\((\d+)," if dtype == "float32" else r".*: (\d+);"
        blocks = constant("kernels/mvn_cdf_pathwise_blocked.h", RESIDENT + by_type)
        numbers, kinds = 2 * pairs / rows + 7 * n, 4  # y, bar and the slopes of a draw
        if to_cov:  # y for each of so many places, a bar for twice as many pivots
            numbers += 1.5 * pairs / rows
    lanes = device["multiprocessors"] * SCHEDULERS * FMA[dtype] * device["clock_hz"]
    moved = numbers * size * points
    held = blocks * device["multiprocessors"] * tile * kinds * size * n
    return {
        "multiply-adds": (3 if to_cov else 2) * pairs * points / lanes,
        "l2": moved / L2,
        "dram": (moved if held > L2_BYTES else 0) / device.get("dram", DRAM),
    }


def cov_seconds(n, device):
    """{limiter: seconds of a problem} from the sums of samples to cov (csrc/kernels/mvn_cdf_pathwise_solve.h)."""
    lanes = device["multiprocessors"] * SCHEDULERS * 2 * FMA["float64"] * device["clock_hz"]
    return {
        "multiply-adds": 8 * 5 / 6 * n**3 / lanes,
        "dram": 7 * 64 * n**2 / device.get("dram", DRAM),
    }


def factor_seconds(n, pivots, device, written=True):
    """{limiter: seconds of a matrix} of so many columns of a factor, float64; what is read are the
    pivots' columns."""
    lanes = device["multiprocessors"] * SCHEDULERS * FMA["float64"] * device["clock_hz"]
    return {
        "multiply-adds": pivots**2 * (n / 2 - pivots / 3) / lanes,
        "dram": (2 if written else 1) * 8 * n * pivots / device.get("dram", DRAM),
    }
