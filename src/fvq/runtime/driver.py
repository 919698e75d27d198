"""The NVIDIA driver of this machine, asked without torch: which one it is, and which CUDA it serves."""

import ctypes
import os
import re
from pathlib import Path

VERSION_FILE = Path("/proc/driver/nvidia/version")
_DEVICES = Path("/dev")


def driver_version() -> str | None:
    """The loaded kernel module's, such as 580.65.06; None where none is loaded."""
    try:
        first_line = VERSION_FILE.read_text().partition("\n")[0]
    except OSError:
        return None
    found = re.search(r"\b\d+(\.\d+){1,2}\b", first_line)
    return found.group() if found else "of unknown version"


def driver_cuda() -> tuple[int, int] | None:
    """Major and minor version of the newest CUDA that the driver's library serves; None where it cannot be loaded."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    failed = library.cuDriverGetVersion(ctypes.byref(number))  # needs no cuInit; 13020 is 13.2
    return None if failed else (number.value // 1000, number.value % 1000 // 10)


def usable_device_files() -> int:
    """Files /dev/nvidia0, 1, … that this process may open: containers and schedulers withhold some."""
    count = 0
    for path in _DEVICES.glob("nvidia[0-9]*"):
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError:
            continue
        count += 1
    return count
