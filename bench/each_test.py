"""A pytest plugin for the one run that a GPU may be lent for (`-p bench.each_test`).

What a test found is said at once, not in a summary that a later hang or crash would take along. FILE of
`--tests-done FILE` gets the name of each test before it runs and ``finished`` at the end, and tests
named there are left out: after a crash, a hang or an error that leaves the CUDA context unusable the
session ends, and a new one goes on behind it (bench/gpu.sh). `--shard I/N` takes every Nth test from the Ith
on, so that N processes share them.
"""

import faulthandler
import os
from pathlib import Path

import pytest

#: Errors after which every call of the process fails.
STICKY = (
    "illegal memory access", "illegal instruction", "misaligned address", "unspecified launch failure",
    "device-side assert", "launch timed out", "invalid program counter", "uncorrectable",
    "hardware stack error", "invalid address space",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--tests-done", type=Path, help="file of the tests that were begun")
    parser.addoption("--shard", default="0/1", help="I/N: every Nth test from the Ith on")
    parser.addoption("--seconds-a-test", type=float, default=60.0, help="then the process ends")


def pytest_configure(config):
    # Standard error itself, which pytest captures while a test runs.
    config.standard_error = os.fdopen(os.dup(2), "w")


def done(config):
    path = config.getoption("--tests-done")
    return set(path.read_text().splitlines()) if path and path.exists() else set()


def note(config, line):
    if path := config.getoption("--tests-done"):
        with path.open("a") as f:
            f.write(line + "\n")


def pytest_collection_modifyitems(config, items):
    begun = done(config)
    first, step = (int(part) for part in config.getoption("--shard").split("/"))
    left = [item for item in items[first::step] if item.nodeid not in begun]
    kept = set(map(id, left))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = left


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    note(item.config, item.nodeid)
    faulthandler.dump_traceback_later(
        item.config.getoption("--seconds-a-test"), exit=True, file=item.config.standard_error
    )
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        text = report.longreprtext
        print(f"\nFAILED {report.nodeid} ({report.when})\n{text}", file=item.config.standard_error)
        item.config.standard_error.flush()
        if any(error in text for error in STICKY):
            item.session.shouldstop = "the CUDA context is unusable"
    return report


def pytest_sessionfinish(session):
    if not session.shouldstop:
        note(session.config, "finished")
