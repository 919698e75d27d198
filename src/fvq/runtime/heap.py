"""Memory that was freed, given back to the system."""

import ctypes


def trim_heap() -> None:
    """Give back what glibc's allocator keeps of freed memory; with another C library do nothing.

    Where large tensors come and go among small ones that stay, it keeps many times what is in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
