"""GPUs that a scheduler allocated against those that torch can use, on pretended machines."""

import ctypes
import re

import pytest
import torch

from fvq.runtime import driver
from fvq.runtime.devices import allocated_gpus, check_gpus, gpu_shortage, visible_gpus
from fvq.runtime.errors import UserError

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.3\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"


class Machine:
    """What torch and the driver say; by default eight GPUs that work."""

    def __init__(self, monkeypatch, folder):
        self.monkeypatch = monkeypatch
        self.folder = folder
        for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_STEP_ID"):
            monkeypatch.delenv(name, raising=False)
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SLURMD_NODENAME", "n1")
        monkeypatch.setattr(torch, "__version__", "2.15.0")
        monkeypatch.setattr(driver, "VERSION_FILE", folder / "version")
        monkeypatch.setattr(driver, "_DEVICES", folder / "dev")
        (folder / "dev").mkdir()
        self.torch(cuda="13.2", counted=8)
        self.driver(OPEN, 13020)
        self.device_files(8)

    def torch(self, cuda=None, hip=None, counted=0, usable=True, complaint="torch knows no more"):
        def fail():
            raise RuntimeError(complaint)

        self.monkeypatch.setattr(torch.version, "cuda", cuda)
        self.monkeypatch.setattr(torch.version, "hip", hip)
        self.monkeypatch.setattr(torch.cuda, "device_count", lambda: counted)
        self.monkeypatch.setattr(torch.cuda, "is_available", lambda: usable and counted > 0)
        self.monkeypatch.setattr(torch.cuda, "init", fail)

    def driver(self, module, cuda):
        (self.folder / "version").unlink(missing_ok=True)
        if module:
            (self.folder / "version").write_text(module)
        original = ctypes.CDLL

        class Library:
            def cuDriverGetVersion(self, number):
                number._obj.value = cuda
                return 0

        def load(name, *rest, **options):
            if name != "libcuda.so.1":
                return original(name, *rest, **options)
            if cuda is None:
                raise OSError("libcuda.so.1: cannot open shared object file")
            return Library()

        self.monkeypatch.setattr(ctypes, "CDLL", load)

    def device_files(self, count):
        for path in (self.folder / "dev").iterdir():
            path.unlink()
        for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{index}" for index in range(count))):
            (self.folder / "dev" / name).touch()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"SLURM_GPUS_ON_NODE": "0"}, None),
        # Slurm 22.05: a batch script, a step, a task bound to two of four, a step without any in a job with some.
        ({"SLURM_GPUS": "a100:3", "SLURM_JOB_GPUS": "0,1,2", "SLURM_GPUS_ON_NODE": "3"}, 3),
        ({"SLURM_STEP_GPUS": "4,5", "SLURM_GPUS_ON_NODE": "2", "SLURM_STEP_ID": "0"}, 2),
        ({"SLURM_STEP_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "4", "SLURM_STEP_ID": "0"}, 2),
        ({"SLURM_GPUS": "a100:3", "SLURM_JOB_GPUS": "0,1,2", "SLURM_STEP_ID": "1"}, None),
        ({"SLURM_JOB_GPUS": "0,1,2,3,4,5,6,7"}, 8),  # before Slurm 20.11
    ],
)
def test_what_slurm_allocated_is_read_from_its_variables(machine, monkeypatch, environment, count):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert allocated_gpus() == count


def test_as_many_gpus_as_allocated_or_more_are_fine(machine, monkeypatch):
    check_gpus()
    check_gpus(8)
    check_gpus(0)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    check_gpus()
    machine.torch(cuda="13.2", counted=0)
    check_gpus(0)
    with pytest.raises(UserError):
        check_gpus()
    monkeypatch.delenv("SLURM_GPUS_ON_NODE")
    check_gpus()  # a CPU machine that was given none


def message(wanted=None):
    with pytest.raises(UserError) as caught:
        check_gpus(wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cpu_build_of_torch(machine, monkeypatch):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    machine.torch()
    assert message() == (
        "8 GPUs are allocated on node n1 and torch sees 0: torch 2.15.0 is a CPU build; "
        "fvq doctor on that node tells more"
    )
    assert message(1).startswith("1 GPU is wanted on node n1 and torch sees 0: ")


def test_a_driver_that_is_too_old(machine):
    """torch's count of devices then includes them all, but none can be used."""
    machine.torch(cuda="13.2", counted=8, usable=False)
    machine.driver(CLOSED, 12020)
    assert visible_gpus() == 0
    assert (
        "torch sees 0: the driver (535.104.05, CUDA 12.2) is older than CUDA 13.2, which torch is built for;"
        in message(8)
    )
    machine.driver(None, 12020)  # as in containers that hide the file
    assert "the driver (CUDA 12.2) is older than CUDA 13.2" in message(8)


def test_an_older_minor_version_of_cuda_is_not_blamed(machine):
    machine.driver(OPEN, 13000)
    assert gpu_shortage(8) is None
    machine.torch(cuda="13.2", complaint="Unexpected error.\nError 802: system not yet initialized")
    assert "torch sees 0: Unexpected error. Error 802: system not yet initialized;" in message(8)


def test_no_driver_and_a_container_without_it(machine):
    machine.torch(cuda="13.2")
    machine.driver(None, None)
    assert re.search("torch sees 0: no driver: .*version is missing;", message(2))
    machine.driver(OPEN, None)
    assert "the driver (580.65.06) is loaded, but its libcuda.so.1 cannot be (containers need --nv" in message(2)


@pytest.mark.parametrize("value", ["0,1", "", "-1", "0,1,-1,2,3,4,5,6,7"])
def test_variables_that_hide_gpus(machine, monkeypatch, value):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    machine.torch(cuda="13.2", counted=2 if value.startswith("0") else 0)
    assert f": CUDA_VISIBLE_DEVICES={value};" in message(8)


def test_device_files_that_were_withheld(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    machine.torch(cuda="13.2", counted=3)
    machine.device_files(3)
    assert "torch sees 3: 3 of the files /dev/nvidia0, 1, ... can be opened;" in message(8)


def test_rocm_is_no_cpu_build_and_needs_no_nvidia_driver(machine, monkeypatch):
    machine.driver(None, None)
    machine.device_files(0)
    machine.torch(hip="6.4", counted=4)
    assert gpu_shortage(4) is None
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0,1,2,3")
    assert "torch sees 4: ROCR_VISIBLE_DEVICES=0,1,2,3;" in message(8)
    machine.torch(hip="6.4", complaint="No HIP GPUs are available")
    assert "torch sees 0: No HIP GPUs are available;" in message(4)


def test_the_driver_s_own_words(machine):
    assert (driver.driver_version(), driver.driver_cuda()) == ("580.65.06", (13, 2))
    machine.driver(CLOSED, 12080)
    assert (driver.driver_version(), driver.driver_cuda()) == ("535.104.05", (12, 8))
    machine.driver("something else\n", None)
    assert (driver.driver_version(), driver.driver_cuda()) == ("of unknown version", None)
    assert driver.usable_device_files() == 8
