"""A long run has its native sources compiled beside the first tests: they take minutes, and most
tests one core."""

import os
import signal
import subprocess
import sys
from pathlib import Path

COMPILER = Path(__file__).parent / "native" / "compile_ahead.py"
# A run of fewer files asks for what it compiles soon.
LONG_RUN = 10


def pytest_collection_finish(session):
    # In the order in which the tests will ask.
    modules = list(dict.fromkeys(item.module for item in session.items if hasattr(item, "module")))
    names = [m.__name__.rpartition(".")[2] for m in modules if hasattr(m, "compile_ahead")]
    if len(modules) < LONG_RUN or not names or session.config.option.collectonly:
        return
    # Of processes that share the tests one: each collects all of them.
    if getattr(session.config, "workerinput", {}).get("workerid", "gw0") != "gw0":
        return
    # Of a group of its own, which ends with the run: compilers among it.
    compiling = subprocess.Popen(
        [sys.executable, COMPILER, *names],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def stop():
        if compiling.poll() is None:
            os.killpg(compiling.pid, signal.SIGTERM)
        compiling.wait()

    session.config.add_cleanup(stop)
