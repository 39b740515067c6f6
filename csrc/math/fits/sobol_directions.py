"""Writes csrc/math/sobol_table.h: primitive polynomials and initial numbers of a Sobol sequence.

Run: python csrc/math/fits/sobol_directions.py [OUTPUT]
The numbers are those of Joe and Kuo (2008), SIAM J. Sci. Comput. 30(5), file new-joe-kuo-6, read from
SciPy's copy; their licence, of the BSD kind, is LICENSES/joe_kuo.txt.
"""

import sys
from pathlib import Path

import numpy as np
import scipy

HEADER = Path(__file__).parent.parent / "sobol_table.h"
DIMENSIONS = 256


def directions():
    """Polynomials [d] with all their bits and initial numbers [d, most]; dimension 0 is van der
    Corput's sequence, which needs none."""
    stored = np.load(Path(scipy.__file__).parent / "stats" / "_sobol_direction_numbers.npz")
    polynomial, initial = stored["poly"][:DIMENSIONS], stored["vinit"][:DIMENSIONS]
    most = int(polynomial.max()).bit_length() - 1
    return polynomial, initial[:, :most]


def main(out):
    polynomial, initial = directions()
    most = initial.shape[1]
    assert int(polynomial.max()) < 2**16 and int(initial.max()) < 2**16
    rows = ",\n      ".join(
        ", ".join(str(int(v)) for v in [p, *m]) for p, m in zip(polynomial, initial, strict=True)
    )
    out.write_text(
        "// Written by csrc/math/fits/sobol_directions.py; do not edit.\n"
        "// Direction numbers by S. Joe and F. Y. Kuo, copyright (c) 2008, all rights reserved; licence\n"
        "// and conditions in LICENSES/joe_kuo.txt.\n"
        "// clang-format off\n#pragma once\n\n#include <cstdint>\n\n"
        '#include "config.h"\n\n'
        "namespace mvnrob::math {\ninline namespace MVNROB_ISA {\nnamespace tables {\n\n"
        f"inline constexpr int kSobolDimensions = {DIMENSIONS};\n"
        f"inline constexpr int kSobolDegree = {most};  // the largest\n"
        "// Of each dimension the primitive polynomial, its bits, then the initial numbers m_1, m_2, ...\n"
        "MVNROB_HD_FN uint32_t sobol_entry(int dimension, int i) {\n"
        "  static constexpr uint16_t table[] = {\n      " + rows + "};\n"
        "  return table[dimension * (kSobolDegree + 1) + i];\n}\n\n"
        "}  // namespace tables\n}  // namespace MVNROB_ISA\n}  // namespace mvnrob::math\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HEADER)
