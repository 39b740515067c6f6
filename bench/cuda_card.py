"""The card that a counted floor is reckoned for: its multiprocessors, clock and memory.

A floor takes {"multiprocessors", "clock_hz", "dram"} (cuda_floor*.py). Of a result they are what its
run found: the multiprocessors, the highest SM clock, and a copy from memory to memory, timed beside
it. A result of before that has no copy and no clock of its own: the cards it may name stand here. The
rates of instructions are sm_90's; of another architecture there is no floor.
"""

from bench.cuda_floor import H200

#: Bytes a second, read and written together, of copies as they were timed on such a card (data sheets:
#: 4.8 and 3.35e12).
COPIES = {"NVIDIA H200": 4.3e12, "NVIDIA H100 80GB HBM3": 3.0e12}
CAPABILITY = "9.0"


def of(environment):
    """The device of a result's environment, or None where no floor can be told for it."""
    copy = environment.get("copy_tb_s")
    dram = 1e12 * copy if copy else COPIES.get(environment.get("gpu"))
    if dram is None or environment.get("capability", CAPABILITY) != CAPABILITY:
        return None
    clock = environment.get("max_sm_mhz")
    return {
        "multiprocessors": environment["multiprocessors"],
        "clock_hz": 1e6 * clock if clock else H200["clock_hz"],
        "dram": dram,
    }


def words(environment):
    """What the floors beside a result are of."""
    device = of(environment)
    if device is None:
        return ""
    how = "a copy timed in the same run" if environment.get("copy_tb_s") else "copies timed before"
    return (
        f"Floors are of {device['multiprocessors']} multiprocessors at "
        f"{1e-6 * device['clock_hz']:,.0f} MHz and {1e-12 * device['dram']:.3g} TB/s of memory ({how})."
    )
