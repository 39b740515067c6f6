"""csrc/shim, which runs CUDA kernel bodies on the CPU: small right bodies give right answers, and
each kind of bug is reported.

The bodies and what is expected of them are in tests/native/shim_good.h and shim_bad.h. They run in
this process, and in programs of their own under ThreadSanitizer, AddressSanitizer and
UndefinedBehaviorSanitizer, where real kernels run too (shim_sanitize.cpp says how to add one).
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build

SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
# AddressSanitizer's checks by calls: compiled in three quarters of the time. GCC's name for it.
BY_CALLS = ["--param=asan-instrumentation-with-call-threshold=0"]


@pytest.fixture(scope="module")
def shim():
    return native_build.load("shim_bindings.cpp", "generic")


@pytest.fixture
def order(shim):
    yield shim.set_order
    shim.set_order(0)


@pytest.mark.parametrize("blocks", [1, 2, 7, 100])
def test_right_bodies(shim, order, blocks):
    """0 is the natural order of threads and blocks, the others are drawn."""
    for seed in (0, 1, 2, 3):
        order(seed)
        for name in shim.good:
            for threads in shim.sizes:
                shim.check_good(name, threads, blocks)


def test_bugs_are_reported(shim):
    silent = set()
    for name, report in shim.bad:
        if report:
            with pytest.raises(Exception, match=re.escape(report)):
                shim.run_bad(name)
        else:
            shim.run_bad(name)
            silent.add(name)
        shim.check_good("block_sum", 128, 2)  # the threads that hung are gone
    # These need another order or a sanitizer.
    assert silent == {"order_dependent", "shuffle_as_barrier", "signed_overflow"}


def test_type_of_an_exception_is_kept(shim):
    with pytest.raises(ValueError, match="thrown by a body"):  # std::domain_error
        shim.run_bad("throws")


def test_deadlock_says_who_waits_where(shim):
    with pytest.raises(RuntimeError) as caught:
        shim.run_bad("two_barriers")
    where = r"__syncthreads \(shim_bad.h:\d+\)"
    assert re.fullmatch(
        "block 0 of shim_tests::TwoBarriers cannot go on: "
        f"threads 0-39 wait at {where}; threads 40-63 wait at {where}",
        str(caught.value),
    )
    with pytest.raises(RuntimeError, match=r"threads 16-31, 48-63 have ended; threads 0-15, 32-47"):
        shim.run_bad("lanes_left")


def test_blocks_that_wait_for_each_other(shim, order):
    """Whoever fails, in whatever order, the others' threads are gone, and who waits where is said."""
    for seed in (0, 1, 2):
        order(seed)
        for name, message in (
            ("block_left", r"block 1 of .*BlockLeft has ended, but block 0 waits at grid_sync"),
            ("two_grid_barriers", r"block 1 of .*Barriers waits at .*, but block 0 waits at"),
            ("throws_beside_others", "thrown by a body"),
            ("no_barrier_of_the_grid", "wrong neighbour"),
        ):
            with pytest.raises((RuntimeError, ValueError), match=message):
                shim.run_bad(name)
            shim.check_good("neighbours", 64, 2)


def test_another_order_shows_a_missing_barrier(shim, order):
    shim.run_bad("order_dependent")
    for seed in (1, 2, 3):
        order(seed)
        with pytest.raises(RuntimeError, match="wrong value"):
            shim.run_bad("order_dependent")


def test_order_from_the_environment():
    code = (
        "import native_build; shim = native_build.load('shim_bindings.cpp', 'generic');"
        "shim.run_bad('order_dependent')"
    )
    for seed, right in (("0", True), ("5", False)):
        run = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            cwd=native_build.HERE,
            env={**os.environ, "MVNROB_SHIM_ORDER": seed},
            capture_output=True,
            text=True,
        )
        assert (run.returncode == 0) == right, run.stderr


def test_bad_launches(shim):
    with pytest.raises(ValueError, match="launch: blocks must be positive, got 0"):
        shim.launch(0, 0)
    with pytest.raises(ValueError, match="launch: shared_bytes must be at most 232448, got 232449"):
        shim.launch(1, 232449)


def compile_programs():
    """shim_sanitize with each sanitizer that the compiler has, and with ucontext."""
    builds = {name: flags for name, flags in SANITIZERS.items() if native_build.links_with(flags)}
    if "address" in builds and native_build.links_with([*builds["address"], *BY_CALLS]):
        builds["address"] = [*builds["address"], *BY_CALLS]
    builds["ucontext"] = ["-DMVNROB_SHIM_UCONTEXT"]

    def build(item):
        name, flags = item
        flags = ["-O1", "-g1", *flags]
        return native_build.executable("shim_sanitize.cpp", f"shim_sanitize_{name}", flags)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(builds, pool.map(build, builds.items()), strict=True))


def compile_ahead():
    native_build.module_file("shim_bindings.cpp", "generic")
    compile_programs()


@pytest.fixture(scope="module")
def programs():
    return compile_programs()


def run_program(program, *case):
    options = {
        # One report is enough, and nothing else runs that could still race at the end.
        "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0",
        "ASAN_OPTIONS": "detect_stack_use_after_return=1",
    }
    environment = {**os.environ, **options}
    return subprocess.run(
        [program, *case], check=False, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers(sanitizer, programs, shim):
    """Right bodies are clean, bugs are reported."""
    if sanitizer not in programs:
        pytest.skip(f"{native_build.compiler()} cannot link {SANITIZERS[sanitizer][0]}")
    program = programs[sanitizer]
    cases = [line.split("\t") for line in run_program(program).stdout.splitlines()]
    assert {name for name, _ in cases} >= {*shim.good, *(name for name, _ in shim.bad)}
    assert all(not report for name, report in cases if name in shim.good)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(lambda case: run_program(program, case[0]), cases))
    for (name, report), run in zip(cases, runs, strict=True):
        if report:
            assert run.returncode != 0 and report in run.stderr, (name, run.stderr)
        else:
            assert run.returncode == 0 and run.stderr == "", (name, run.stderr)


def test_portable_switch_of_stacks(programs, shim):
    """Where the assembly of fiber.h is not for the processor, ucontext does its work."""
    for case in shim.good:
        run = run_program(programs["ucontext"], case)
        assert run.returncode == 0, run.stderr
    run = run_program(programs["ucontext"], "two_barriers")
    assert run.returncode == 1 and "cannot go on" in run.stderr
