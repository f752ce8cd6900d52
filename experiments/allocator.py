"""The C library's allocator, told to keep the memory that training frees and asks for again a moment later."""

import ctypes
import sys

# mallopt's names for its options in the GNU C library's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROWTH = 1 << 28


def keep_freed_memory() -> None:
    """Ask the allocator not to give memory back to the system. Of no effect but on Linux with the GNU C library.

    A training step allocates and frees the same large tensors every time. By default each of them is a fresh mapping, whose
    pages the kernel clears one by one when they are first touched: 7 % of the time of a step of the bit-vector VAE with 1,900
    pairs of image and code (one thread), and half of that of a network with larger hidden layers. The process then keeps the
    largest amount of memory that it ever used.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROWTH)):
            mallopt(option, value)
