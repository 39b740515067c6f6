"""Memory of the C library that one pass on a CPU leaves to the next.

glibc gives large blocks back to the system as they are freed, and the system clears each page before it
hands it out again. In passes of many inputs or tangents that takes up to as long as their arithmetic.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator

import torch

#: Options of mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
#: What glibc's own rule arrives at once a block of 32 MiB has been freed; its default of blocks.
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _MMAP_MAX = 2**25, 2**26, 65536
#: Where a user has asked for these by the environment, they stay.
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_",
           "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")  # fmt: skip

#: Bytes left in memory from which on what is free is looked for and given back at once.
_WORTH_A_LOOK = 2**26


class _Holder:
    """A call that runs. One that an interrupt kept from leaving goes with its frame."""


_lock = threading.RLock()  # a finaliser may end a call within another's few lines
_holders: weakref.WeakSet[_Holder] = weakref.WeakSet()
#: What :func:`_resident` said when the first of them came.
_before = 0


def _find_glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version, library.mallopt, library.malloc_trim  # noqa: B018
    except (OSError, AttributeError):  # another C library
        return None
    library.mallopt.argtypes, library.malloc_trim.argtypes = [ctypes.c_int] * 2, [ctypes.c_size_t]
    return library


_glibc = _find_glibc()


def _resident() -> int:
    """Bytes of the process that lie in memory; 0 where /proc is not to be read."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _kept(mallopt: Callable[[int, int], int]) -> None:
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def _given_back(mallopt: Callable[[int, int], int]) -> None:
    mallopt(_M_MMAP_MAX, _MMAP_MAX)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


@contextlib.contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Within: what is freed stays with the process. At the end it goes back to the system, where this left
    more than 64 MiB: to look through the heap may take milliseconds.

    Without effect on a GPU, with another C library or allocator, in what torch.compile traces, and where
    the environment sets glibc's (``MALLOC_*``, ``GLIBC_TUNABLES``). May be nested, run in several threads and
    be interrupted: the end of the last counts. Large blocks of threads other than the main one are not kept.
    """
    global _before
    serves = _glibc is not None and device.type == "cpu" and not torch.compiler.is_compiling()
    if not serves or any(name in os.environ for name in _CHOSEN):
        yield
        return
    holder = _Holder()
    try:
        with _lock:
            _holders.add(holder)
            if len(_holders) == 1:
                _kept(_glibc.mallopt)
                _before = _resident()
        yield
    finally:
        with _lock:
            _holders.discard(holder)
            if not _holders:
                _given_back(_glibc.mallopt)
                if _resident() - _before > _WORTH_A_LOOK:
                    _glibc.malloc_trim(0)


def _forget() -> None:
    """In a process that was forked while calls ran: no thread is left to end them."""
    global _lock
    _lock = threading.RLock()
    if _holders:
        _holders.clear()
        _given_back(_glibc.mallopt)


if _glibc is not None and hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
