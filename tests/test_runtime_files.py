"""Files appear whole or not at all, also on a disk that refuses; what is written is read back the same."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import secrets
import sys
from pathlib import Path

import pytest
import torch

from fvq.runtime.checkpoint import CheckpointFolder
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.files import read_json, sha256_file, write_atomically, write_json
from fvq.runtime.training import write_history
from fvq.runtime.weights import load_weights, save_weights

LIMIT = 20_000  # bytes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_in_folders_made_for_it(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with write_atomically(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, exception):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(exception), write_atomically(path) as temporary:
        temporary.write_text("new")
        raise exception
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    path = tmp_path / "folder"
    for generation in ("old", "new"):
        with write_atomically(path) as temporary:
            temporary.mkdir()
            (temporary / generation).write_text(generation)
        assert names(path) == [generation]
    with pytest.raises(ValueError), write_atomically(path) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise ValueError
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_nothing_written_is_an_error(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UserError, match=r"file\.txt: nothing was written"), write_atomically(path):
        pass
    assert path.read_text() == "old"


@pytest.mark.parametrize("inside", ["", "inner/file.txt"])
def test_errors_name_the_target_not_the_temporary_file(tmp_path, inside):
    path = tmp_path / "target"
    with pytest.raises(OSError) as caught, write_atomically(path) as temporary:
        (temporary / inside if inside else temporary).open("r")
    assert caught.value.filename == str(path)
    assert caught.value.errno == errno.ENOENT


def test_errors_about_other_files_name_those(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, write_atomically(tmp_path / "target") as temporary:
        temporary.write_text("x")
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")
    assert names(tmp_path) == []


def test_a_file_does_not_replace_a_folder(tmp_path, capsys):
    path = tmp_path / "taken"
    (path / "inner").mkdir(parents=True)
    with pytest.raises(SystemExit), one_line_errors(), write_atomically(path) as temporary:
        temporary.write_text("x")
    assert capsys.readouterr().err == f"fvq: error: {path}: Is a directory\n"
    assert names(tmp_path) == ["taken"]


def test_a_file_in_the_place_of_a_parent_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit), one_line_errors(), write_atomically(tmp_path / "file" / "target"):
        pass
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert error.count("\n") == 1


@contextlib.contextmanager
def limited_file_size(temporary):
    """The system refuses to let a file grow beyond the limit, in the middle of the writing."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_disk(temporary):
    """The temporary file is a device on which no byte finds room."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    temporary.symlink_to("/dev/full")
    yield "No space left on device"


def save_state(path, size):
    CheckpointFolder(path.parent).save(7, {"weight": torch.zeros(size), "history": []})


WRITERS = {
    "weights.safetensors": lambda path, size: save_weights(path, {"w": torch.zeros(size)}, kind="tokenizer", config={}),
    "step-00000007.pt": save_state,
    "data.json": lambda path, size: write_json(path, list(range(size))),
    "history.csv": lambda path, size: write_history(path, [{"step": i, "loss": 0.5} for i in range(size)]),
}


# safetensors renames a file of its own onto the temporary one, and so never touches the full device.
REFUSALS = [
    (name, refusal)
    for refusal in (limited_file_size, full_disk)
    for name in WRITERS
    if refusal is limited_file_size or name != "weights.safetensors"
]


@pytest.mark.parametrize(("name", "refusal"), REFUSALS)
def test_a_disk_that_refuses_is_one_line_and_the_old_file_stays(tmp_path, capsys, monkeypatch, name, refusal):
    path = tmp_path / name
    WRITERS[name](path, 10)
    before = {each: (tmp_path / each).read_bytes() for each in names(tmp_path)}
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0123abcd")
    temporary = tmp_path / f".{name}.0123abcd.tmp{path.suffix}"
    with refusal(temporary) as reason, pytest.raises(SystemExit) as caught, one_line_errors():
        WRITERS[name](path, 50_000)
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"fvq: error: {path}: {reason}\n"
    assert {each: (tmp_path / each).read_bytes() for each in names(tmp_path)} == before


def test_a_state_on_a_full_disk_raises_an_os_error(tmp_path):
    with limited_file_size(None), pytest.raises(OSError) as caught:
        CheckpointFolder(tmp_path).save(7, {"weight": torch.zeros(50_000)})
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "step-00000007.pt")


@pytest.mark.skipif(sys.platform == "win32" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may write")
def test_a_folder_without_the_right_to_write(tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(SystemExit), one_line_errors():
        write_json(tmp_path / "locked" / "data.json", {})
    assert capsys.readouterr().err == f"fvq: error: {tmp_path / 'locked' / 'data.json'}: Permission denied\n"


def test_json_round_trip(tmp_path):
    data = {"usage": 0.1 + 0.2, "name": "größe", "list": [1, None, True]}
    write_json(tmp_path / "data.json", data)
    assert read_json(tmp_path / "data.json") == data
    assert "größe" in (tmp_path / "data.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path, value):
    write_json(tmp_path / "data.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "data.json", {"a": value})
    assert read_json(tmp_path / "data.json") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_damaged_json_names_the_file(tmp_path, content):
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(UserError, match=r"data\.json: not valid JSON"):
        read_json(tmp_path / "data.json")


def test_missing_files_are_named(tmp_path):
    for read in (read_json, sha256_file):
        with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
            read(tmp_path / "nowhere.json")


def test_sha256(tmp_path):
    content = secrets.token_bytes(300_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_history_as_csv(tmp_path):
    history = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-12, "usage": 1.0}]
    write_history(tmp_path / "history.csv", history)
    text = (tmp_path / "history.csv").read_text()
    assert text.splitlines()[0] == "step,loss,usage"
    rows = list(csv.DictReader(text.splitlines()))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in history]
    assert [row["usage"] for row in rows] == ["", "1.0"]


def test_weights_round_trip(tmp_path):
    tensors = {
        "a.weight": torch.randn(3, 4).T,
        "b": torch.randn(2, dtype=torch.bfloat16),
        "c": torch.arange(5),
        "d": torch.tensor(1.5, requires_grad=True),
    }
    config = {"size": 3, "grid": [1, 2], "name": "ä", "none": None}
    save_weights(tmp_path / "w.safetensors", tensors, kind="generator", config=config)
    found, found_config = load_weights(tmp_path / "w.safetensors", kind="generator")
    assert found_config == config
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_weights_of_another_kind(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(1)}, kind="generator", config={})
    with pytest.raises(UserError, match=r"w\.safetensors: holds a generator, not a tokenizer"):
        load_weights(path, kind="tokenizer")


def damaged(content):
    yield "cut off in the tensors", content[:-10]
    yield "cut off in the header", content[:20]
    yield "empty", b""
    yield "text", b"these are no weights at all"
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, metadata in (
        ("no metadata", None),
        ("foreign metadata", {"format": "pt"}),
        ("a list", {"fvq": "[]"}),
        ("no kind", {"fvq": '{"config": {}}'}),
        ("no JSON", {"fvq": "{"}),
    ):
        entries = {**header, "__metadata__": metadata} if metadata else {k: header[k] for k in header if k[0] != "_"}
        encoded = json.dumps(entries).encode()
        yield name, len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


def test_damaged_and_foreign_weights_name_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(10)}, kind="tokenizer", config={})
    for what, content in damaged(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"w\.safetensors: (not a readable safetensors|holds no fvq)") as caught:
            load_weights(path, kind="tokenizer")
        assert "\n" not in str(caught.value), what


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_missing_weights(tmp_path, make):
    make(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors: no such file"):
        load_weights(tmp_path / "w.safetensors", kind="tokenizer")
