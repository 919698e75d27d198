"""``fvq doctor``: GPUs, disks, published weights found, missing and fetched, and other packages' extractors."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from fvq.cli import doctor
from fvq.evaluate.networks import pretrained
from fvq.evaluate.networks.pretrained import PUBLISHED, PretrainedFile
from fvq.runtime import devices, driver
from fvq.runtime.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_allocated(monkeypatch):
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Pretends a number of GPUs that work."""
    ones = torch.ones

    def pretend(count):
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        properties = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", total_memory=80 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch, "ones", lambda *size, device=None: ones(*size))
        monkeypatch.setattr(driver, "driver_version", lambda: "580.65.06")
        for module in (driver, devices):
            monkeypatch.setattr(module, "driver_cuda", lambda: (13, 0))

    return pretend


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """The files that were fetched; each network's file is ten bytes of its name, and nothing is downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    files: list[str] = []
    folder = tmp_path / "torch" / "hub" / "checkpoints"

    def fetch(file: PretrainedFile):
        files.append(file.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(f"{file.name:10}".encode())
        return folder / file.name

    for name in PUBLISHED:
        sha256 = hashlib.sha256(f"{name:10}".encode()).hexdigest()
        monkeypatch.setitem(PUBLISHED, name, (PretrainedFile(name, sha256, 10, f"https://example.org/{name}"),))
    monkeypatch.setattr(pretrained, "fetch", fetch)
    return files


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` returns."""

    total: float
    used: float
    free: float


def lines(out: str) -> dict[str, str]:
    return {line[8:24].strip(): line for line in out.splitlines()[:-1]}


def test_each_network_s_weights_are_listed_with_their_purpose(fvq, monkeypatch, tmp_path):
    monkeypatch.setenv("FVQ_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    status, out, _ = fvq("doctor")
    found = lines(out)
    assert status == 0
    purposes = {
        "inception-2015": "FID",
        "alexnet": "lpips_alex",
        "vgg16": "lpips_vgg",
        "squeezenet1_0": "fd_squeezenet1_0",
        "dinov2-vit-l14": "FD-DINOv2",
    }
    assert set(purposes) == set(PUBLISHED)
    for name, purpose in purposes.items():
        file = PUBLISHED[name][0]
        assert found[name].startswith("note ") and purpose in found[name]
        for part in (file.name, file.sha256, str(tmp_path / "mine"), str(tmp_path / "torch/hub/checkpoints")):
            assert part in found[name]
        assert f"fvq doctor --fetch {name}" in found[name]
        assert ("FID" in found[name]) == (name == "inception-2015"), "only its features give one"


def test_fetch_brings_what_the_default_protocols_need_and_is_missing(fvq, fetched, tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "alexnet").write_bytes(b"alexnet   ")
    status, out, err = fvq("doctor", "--fetch")
    assert (status, err) == (0, "") and fetched == ["inception-2015", "vgg16"]
    assert out.splitlines()[:3] == [
        f"inception-2015: fetched {folder / 'inception-2015'}",
        f"alexnet: {folder / 'alexnet'} is there already",
        f"vgg16: fetched {folder / 'vgg16'}",
    ]
    found = lines("\n".join(out.splitlines()[3:]))
    for name in ("inception-2015", "alexnet", "vgg16"):
        assert re.match(rf"ok +{name} +{folder / name}, for ", found[name])
    assert found["dinov2-vit-l14"].startswith("note ")
    fvq("doctor", "--fetch")
    assert fetched == ["inception-2015", "vgg16"]


def test_others_are_fetched_by_name(fvq, fetched):
    assert fvq("doctor", "--fetch", "dinov2-vit-l14", "squeezenet1_0")[0] == 0
    assert fetched == ["dinov2-vit-l14", "squeezenet1_0"]


def test_without_fetch_nothing_is_fetched(fvq, fetched):
    assert fvq("doctor")[0] == 0
    status, _, err = fvq("doctor", "vgg16")
    assert status == 2 and "--fetch" in err and err.count("\n") == 1
    assert fetched == []


def test_what_cannot_be_fetched_is_one_line(fvq, fetched, monkeypatch, tmp_path):
    status, out, err = fvq("doctor", "--fetch", "vgg16", "vgg19")
    assert (status, out, err.count("\n")) == (1, "", 1) and fetched == []
    for name in ("vgg19", *PUBLISHED):
        assert name in err

    def fail(file: PretrainedFile):
        raise UserError(f"{file.address}: cannot be fetched (no network)")

    monkeypatch.setattr(pretrained, "fetch", fail)
    status, out, err = fvq("doctor", "--fetch")
    assert (status, out) == (1, "")
    assert err == "fvq: error: https://example.org/inception-2015: cannot be fetched (no network)\n"

    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vgg16").write_bytes(b"half a download")
    status, _, err = fvq("doctor", "--fetch", "vgg16")
    assert status == 1 and f"{folder / 'vgg16'}: SHA-256 is " in err and err.count("\n") == 1


def test_other_packages_extractors_are_listed_too(fvq, fetched, monkeypatch, tmp_path):
    packages = tmp_path / "site-packages"
    information = packages / "colours-1.2.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.2\n")
    points = ("colours = colours_for_doctor:spec", "torn = colours_for_doctor:torn", "vgg16 = colours_for_doctor:spec")
    (information / "entry_points.txt").write_text("[fvq.extractors]\n" + "\n".join(points) + "\n")
    (packages / "colours_for_doctor.py").write_text(
        "from fvq.evaluate.networks.extractors import ExtractorSpec\n"
        "from fvq.evaluate.networks.pretrained import PretrainedFile\n"
        "file = PretrainedFile('colours.bin', '0' * 64, 10, 'https://example.org/colours')\n"
        "spec = ExtractorSpec('colours', (file,), 3, lambda path, device: None)\n"
    )
    monkeypatch.syspath_prepend(packages)
    status, out, _ = fvq("doctor")
    assert status == 1 and out.splitlines()[-1] == "broken: torn, vgg16"
    assert re.search(r"^note +colours +for fd_colours.*colours\.bin.*--fetch colours", out, re.MULTILINE)
    assert re.search(r"^broken +torn +extractor torn .*cannot be loaded", out, re.MULTILINE)
    assert re.search(r"^broken +vgg16 +.*is not used", out, re.MULTILINE)
    assert fvq("doctor", "--fetch", "colours")[0] == 1  # the file is not what the package says, so the table shows it
    assert fetched == ["colours.bin"]


def test_the_gpus_asked_for_are_there(fvq, gpus, monkeypatch):
    gpus(2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 30, 7))
    status, out, _ = fvq("doctor", "--gpus", 2)
    assert status == 0
    assert re.search(r"^ok +driver +580.65.06, for CUDA up to 13.0$", out, re.MULTILINE)
    assert re.search(r"^ok +GPU 1 +NVIDIA A100-SXM4-80GB, 80 GiB$", out, re.MULTILINE)
    assert re.search(r"^ok +GPUs +2 of 2 asked for$", out, re.MULTILINE)
    assert re.search(r"^ok +NCCL +2.30.7$", out, re.MULTILINE)

    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    status, out, _ = fvq("doctor")
    assert status == 1 and out.splitlines()[-1] == "broken: NCCL"


def test_fewer_gpus_than_allocated_are_broken_with_the_cause(fvq, gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    status, out, _ = fvq("doctor")
    assert status == 1 and re.search(r"^broken +GPUs +2 of 8 allocated: CUDA_VISIBLE_DEVICES=0,1$", out, re.MULTILINE)
    status, out, _ = fvq("doctor", "--gpus", 2)  # what is asked for goes before what is allocated
    assert "broken  GPU" not in out


def test_a_driver_without_a_torch_that_fits(fvq, gpus, monkeypatch):
    gpus(0)
    for module in (driver, devices):
        monkeypatch.setattr(module, "driver_cuda", lambda: (12, 2))
    status, out, _ = fvq("doctor")
    line = lines(out)["driver"]
    assert status == 0 and line.startswith("note "), "everything runs on the CPU"
    assert "torch cannot use it: the driver (" in line and "CUDA 12.2) is older than CUDA 13.2" in line
    assert "make setup TORCH_BACKEND=auto" in line
    status, out, _ = fvq("doctor", "--gpus", 1)
    assert status == 1 and "0 of 1 asked for: the driver (" in lines(out)["GPUs"]


def test_a_gpu_that_is_seen_and_cannot_compute(fvq, gpus, monkeypatch):
    def fail(*size, device=None):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")

    gpus(1)
    monkeypatch.setattr(torch, "ones", fail)
    status, out, _ = fvq("doctor")
    assert status == 1 and lines(out)["GPU 0"].endswith("cannot compute (CUDA error: no kernel image is available)")


def test_a_cpu_machine_is_fine_where_no_gpu_is_asked_for(fvq, gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(driver, "driver_version", lambda: None)
    for module in (driver, devices):
        monkeypatch.setattr(module, "driver_cuda", lambda: None)
    for asked in ((), ("--gpus", 0)):
        status, out, _ = fvq("doctor", *asked)
        found = lines(out)
        assert status == 0
        for name in ("driver", "GPUs", "NCCL"):
            assert found[name].startswith("note "), name
    status, _, err = fvq("doctor", "--gpus", -1)
    assert status == 2 and "--gpus" in err and err.count("\n") == 1


def test_little_space_and_folders_that_cannot_be_written(fvq, monkeypatch, tmp_path):
    full, small = tmp_path / "full", tmp_path / "shm"
    small.mkdir()
    monkeypatch.setattr(doctor, "_SHARED_MEMORY", small)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: Usage(64e6, 0, 64e6) if folder == small else Usage(3e9, 0, 3e9)
    )
    monkeypatch.setenv("TMPDIR", str(full))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    status, out, _ = fvq("doctor")
    found = lines(out)
    assert status == 0
    assert found["free disk"].startswith("note ") and "3.0 GB" in found["free disk"]
    assert found["shared memory"].startswith("note ") and "0.1 of 0.1 GB free" in found["shared memory"]
    assert found["temporary files"].endswith(f"nothing can be written to TMPDIR={full}; {tmp_path} is used")

    def refuse(dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    status, out, _ = fvq("doctor")
    assert status == 1 and lines(out)["free disk"].endswith("nothing can be written (No space left on device)")


def test_a_temporary_folder_on_another_file_system_is_listed(fvq, monkeypatch, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        monkeypatch.setenv("TMPDIR", other)
        monkeypatch.setattr(tempfile, "tempdir", None)
        assert re.search(rf" GB in {other}$", lines(fvq("doctor")[1])["temporary files"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TMPDIR")
    assert "temporary files" not in lines(fvq("doctor")[1])


def test_what_the_study_lacks_is_named(fvq, monkeypatch, tmp_path):
    """Images and weights without which a stage stops are broken; without LPIPS's for a figure it goes on."""
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    status, out, _ = fvq("doctor")
    assert status == 0
    left_out = [line for line in out.splitlines() if line[8:].startswith("weights ")]
    assert len(left_out) == 1 and left_out[0].startswith("note ") and "the study goes without lpips_alex" in left_out[0]

    options = ("--out", str(tmp_path / "params.yaml"), "scale=imagenet", f"prepare_data.train={tmp_path / 'train'}")
    subprocess.run([sys.executable, "-m", "pipeline.compose", *options], cwd=ROOT, check=True)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
    status, out, _ = fvq("doctor")
    assert status == 1
    said = [line.split(None, 2) for line in out.splitlines() if line[8:].startswith(("weights ", "images "))]
    assert [(state, kind) for state, kind, _ in said] == [("broken", "images")] * 3 + [("broken", "weights")] * 2 + [
        ("note", "weights")
    ] * 2
    assert said[0][2] == "prepare_data.validation: data/imagenet/val: no such file or folder"
    assert said[3][2].startswith("train_extractor.weights: no weights-inception-2015")
    assert out.splitlines()[-1] == "broken: images, weights"


def test_a_removed_folder_is_named(fvq, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, out, err = fvq("doctor")
    assert (status, err) == (1, "")
    assert lines(out)["free disk"] == "broken  free disk       this folder has been removed"
