"""``fvq doctor``: published weights found, missing and fetched, and other packages' extractors."""

import hashlib
import re

import pytest

from fvq.evaluate.networks import pretrained
from fvq.evaluate.networks.pretrained import PUBLISHED, PretrainedFile
from fvq.runtime.errors import UserError


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


def lines(out: str) -> dict[str, str]:
    return {line[8:24].strip(): line for line in out.splitlines()}


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
