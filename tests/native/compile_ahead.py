"""Compiles what test modules will ask for, in a process beside the tests: `compile_ahead.py test_x ...`.

Each module named has a function `compile_ahead`. What fails here fails again in the test that needs
it, which then says so.
"""

import contextlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    os.nice(10)  # the tests come first
    sys.path.insert(0, str(TESTS))
    for name in sys.argv[1:]:
        with contextlib.suppress(subprocess.CalledProcessError):
            importlib.import_module(name).compile_ahead()
