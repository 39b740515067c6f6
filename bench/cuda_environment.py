"""What machine a GPU run had: environment.json of bench/gpu.sh.

python -m bench.cuda_environment FILE before COMMAND
python -m bench.cuda_environment FILE after SECTION=RESULT=SECONDS ...

Needs neither mvnrob nor a GPU: a build that fails is reported too, and what cannot be found out is
null.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from bench import harness

# Asked of nvidia-smi; clocks in MHz, power in watts.
STATE = (
    "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw",
    "power.limit", "utilization.gpu", "pstate",
)  # fmt: skip


def commit():
    """What MVNROB_COMMIT says, which a copy of a checkout needs; else the checkout's."""
    return os.environ.get("MVNROB_COMMIT") or harness.commit() or "unknown"


def output(*command):
    """First line that a program prints, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def clocks():
    """State of the GPU now, or None without nvidia-smi."""
    for chosen in (*chosen_gpu(), "--id=0"):
        fields = output(
            "nvidia-smi", chosen, f"--query-gpu={','.join(STATE)}", "--format=csv,noheader,nounits"
        )
        if fields is not None:
            break
    if fields is None:
        return None
    values = [number(word.strip()) for word in fields.splitlines()[0].split(",")]
    return dict(zip(STATE, values, strict=False))


def chosen_gpu():
    """nvidia-smi counts all GPUs of the machine, torch those it may see."""
    try:
        import torch

        return (f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}",)
    except (ImportError, AssertionError, AttributeError, RuntimeError):
        return ()


def gpu():
    """Name, sizes and versions as torch sees them, and the driver's."""
    driver = output(
        "nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader,nounits"
    )
    try:
        import torch
    except ImportError as error:
        return {"torch": f"not importable: {error}", "driver": driver}
    found = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver,
        "gpus": 0,
    }
    try:
        p = torch.cuda.get_device_properties(0)
    except (AssertionError, RuntimeError) as error:  # built without CUDA; no driver, no device
        found["gpu"] = f"none: {str(error).splitlines()[0]}"
    else:
        found |= {
            "gpus": torch.cuda.device_count(),
            "gpu": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_gib": round(p.total_memory / 2**30, 1),
            "l2_mib": round(getattr(p, "L2_cache_size", 0) / 2**20, 1),
            "max_sm_mhz": (clocks() or {}).get("clocks.max.sm"),
        }
    return found


def nvcc_version():
    home = os.environ.get("CUDA_HOME")
    text = output(f"{home}/bin/nvcc" if home else "nvcc", "--version")
    lines = [line.strip() for line in (text or "").splitlines() if "release" in line]
    return lines[0] if lines else None


def before(command):
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "commit": commit(),
        **gpu(),
        "nvcc": nvcc_version(),
        "cpu": harness.cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "clocks_before": clocks(),
    }


def after(sections):
    split = [section.split("=") for section in sections]
    return {
        "clocks_after": clocks(),
        "sections": {name: {"result": r, "seconds": int(s)} for name, r, s in split},
    }


def main():
    path, when, *words = sys.argv[1:]
    path = Path(path)
    if when == "before":
        report = before(" ".join(words))
    else:
        report = json.loads(path.read_text()) if path.exists() else {}
        report |= after(words)
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
