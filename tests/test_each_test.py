"""bench/each_test.py: of a run of tests on a GPU nothing is lost to a crash, a hang or a broken context."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import os, time

def test_before():
    pass

def test_wrong():
    assert 1 + 1 == 3

def test_unusable_context():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_crash():
    os.abort()

def test_hang():
    time.sleep(60)

def test_after():
    pass
"""


def test_goes_on_behind_what_ends_a_process(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    begun = tmp_path / "begun"
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "bench.each_test",
        "--tests-done", str(begun), "--seconds-a-test", "3", "--rootdir", str(tmp_path), "-c",
        os.devnull, str(tmp_path / "test_some.py"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    codes, said = [], ""
    while not begun.exists() or "finished" not in begun.read_text().splitlines():
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        codes.append(done.returncode)
        said += done.stdout + done.stderr
        assert len(codes) < 6
    assert codes == [2, -6, 1, 0]
    names = [line.rpartition("::")[2] for line in begun.read_text().splitlines()]
    assert names == [
        "test_before", "test_wrong", "test_unusable_context", "test_crash", "test_hang",
        "test_after", "finished",
    ]  # fmt: skip
    for text in (
        "FAILED test_some.py::test_wrong (call)", "assert (1 + 1) == 3", "illegal memory access",
        "Fatal Python error: Aborted", "Timeout (0:00:03)!", "in test_hang",
    ):  # fmt: skip
        assert text in said, text


def test_shards_share_the_tests(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n@pytest.mark.parametrize('i', range(5))\ndef test_it(i):\n    pass\n"
    )
    names = []
    for shard in ("0/2", "1/2"):
        begun = tmp_path / "begun"
        begun.unlink(missing_ok=True)
        subprocess.run(
            [
                sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "bench.each_test",
                "--tests-done", str(begun), "--shard", shard, "--rootdir", str(tmp_path), "-c",
                os.devnull, str(tmp_path / "test_some.py"),
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True,
        )  # fmt: skip
        names.append([line.rpartition("::")[2] for line in begun.read_text().splitlines()])
    assert names == [[f"test_it[{i}]" for i in (0, 2, 4)] + ["finished"],
                     [f"test_it[{i}]" for i in (1, 3)] + ["finished"]]  # fmt: skip
