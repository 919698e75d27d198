"""Where results lie and how they travel: a cache that clones share, remotes in a folder and behind a real sshd."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from projects import ROOT, Project

UP_TO_DATE = "Data and pipelines are up to date."
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

# A file and a folder, as the real stages have them.
STAGES = """\
stages:
  train:
    cmd: python stages.py
    deps: [stages.py]
    outs:
      - results/weights.bin
      - results/tokens/
"""
SCRIPT = """
import random
from pathlib import Path

draw = random.Random(1)
with open("ran.txt", "a") as file:
    file.write("ran\\n")
Path("results/tokens").mkdir(parents=True, exist_ok=True)
Path("results/weights.bin").write_bytes(draw.randbytes(24_000_000))
for shard in range(12):
    Path(f"results/tokens/{shard}.bin").write_bytes(draw.randbytes(10_000))
"""
FILES = 13
OBJECTS = FILES + 1  # and the list of the folder's files


class Server(NamedTuple):
    """An sshd at work."""

    port: int
    key: Path  # the one that it takes
    other_key: Path
    process: "subprocess.Popen[bytes]"


def opened(path: Path) -> Project:
    """The repository in a folder, with a home folder beside it in which DVC keeps its own notes, too."""
    project = Project(path)
    project.environment["DVC_SITE_CACHE_DIR"] = project.environment["HOME"] + "/dvc"
    return project


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this one's DVC settings, committed, its one stage done."""
    folder = tmp_path_factory.mktemp("made") / "project"
    (folder / ".dvc").mkdir(parents=True)
    for name in (".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    for name, text in {"dvc.yaml": STAGES, "stages.py": SCRIPT, ".gitignore": "ran.txt\n"}.items():
        (folder / name).write_text(text)
    project = opened(folder)
    project.git("init", "-q", "-b", "main")
    project.run("dvc", "repro", "-q")
    (folder / "ran.txt").unlink()
    project.commit("Results")
    return folder


@pytest.fixture
def toy(made: Path, tmp_path: Path) -> Project:
    """That repository, with results and cache, to change at will."""
    return opened(shutil.copytree(made, tmp_path / "first/project"))


def clone(project: Project, path: Path) -> Project:
    """Another person's clone: what git has, and nothing of DVC's."""
    path.parent.mkdir()
    return opened(project.clone(path).path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An sshd on a free port of the loopback that serves files only, to one key, and asks for no password."""
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    for name in ("host", "client", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "client.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "Subsystem": "sftp internal-sftp",
        "ForceCommand": "internal-sftp",
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    # What a root's sshd wants to exist: otherwise the distribution's service makes it.
    separation = Path("/run/sshd")
    missing = os.geteuid() == 0 and not separation.exists()
    if missing:
        separation.mkdir(mode=0o755)
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=file)
    try:
        deadline = time.monotonic() + 20
        while "listening" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Server(port, folder / "client", folder / "other", process)
    finally:
        process.terminate()
        process.wait(20)
        if missing:
            separation.rmdir()


@pytest.fixture(params=["folder", "ssh"])
def remotes(request: pytest.FixtureRequest, toy: Project, tmp_path: Path) -> list[tuple[str, ...]]:
    """The toy's committed settings name a remote; these are the commands that a person's own clone needs beside."""
    store = str(tmp_path / "store")
    if request.param == "folder":
        toy.run("dvc", "remote", "add", "-q", "-d", "shared", store)
        commands = []
    else:
        server: Server = request.getfixturevalue("server")
        toy.run("dvc", "remote", "add", "-q", "-d", "shared", f"ssh://127.0.0.1:{server.port}{store}")
        commands = [("dvc", "remote", "modify", "--local", "shared", "keyfile", str(server.key))]
    toy.commit("A remote")
    for command in commands:
        toy.run(*command)
    return commands


def results(project: Project) -> list[Path]:
    return sorted((project.path / "results").rglob("*.bin"))


def objects(folder: Path) -> list[Path]:
    """What a cache or a remote holds, with what is unfinished."""
    return sorted(path for path in (folder / "files").rglob("*") if path.is_file())


def assert_complete(project: Project, original: Project) -> None:
    """All results are there, and nothing is to run or was run."""
    files = results(project)
    assert len(files) == FILES
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in results(original)]
    assert project.run("dvc", "repro").stdout.splitlines()[-1] == UP_TO_DATE
    assert project.git("status", "--short") == ""
    assert not (project.path / "ran.txt").exists()


def test_a_killed_push_is_completed_and_a_second_person_pulls(
    toy: Project, remotes: list[tuple[str, ...]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    push = subprocess.Popen(["dvc", "push", "-q"], cwd=toy.path, env=toy.environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not objects(store):
        assert push.poll() is None, "it was over before it could be killed"
        assert time.monotonic() < deadline
    os.killpg(push.pid, signal.SIGKILL)
    assert push.wait() == -signal.SIGKILL
    whole = {path.name: path.read_bytes() for path in objects(toy.path / ".dvc/cache")}
    sent = {path.name: path.read_bytes() for path in objects(store) if path.suffix != ".tmp"}
    assert len(whole) == OBJECTS
    assert sent.items() < whole.items()  # what lies there under its own name is not cut off

    toy.run("dvc", "push", "-q")
    other = clone(toy, tmp_path / "second/project")
    for command in remotes:
        other.run(*command)
    assert results(other) == []
    other.run("dvc", "pull", "-q")
    assert_complete(other, toy)


def test_a_refused_key_and_a_server_that_is_down(toy: Project, server: Server, tmp_path: Path) -> None:
    toy.run("dvc", "remote", "add", "-q", "-d", "shared", f"ssh://127.0.0.1:{server.port}{tmp_path / 'store'}")
    toy.run("dvc", "remote", "modify", "--local", "shared", "keyfile", str(server.other_key))
    said = toy.run("dvc", "push", code=None).stderr
    assert "Permission denied for user" in said
    assert "on host 127.0.0.1" in said

    toy.run("dvc", "remote", "modify", "--local", "shared", "keyfile", str(server.key))
    server.process.terminate()
    server.process.wait(20)
    said = toy.run("dvc", "push", code=None).stderr
    assert f"Connect call failed ('127.0.0.1', {server.port})" in said
    assert "Traceback" not in said
    assert not (tmp_path / "store").exists()


def test_clones_share_an_external_cache_by_links(toy: Project, tmp_path: Path) -> None:
    shared = tmp_path / "shared cache"
    settings = [
        ("dvc", "cache", "dir", "--local", str(shared)),
        ("dvc", "config", "--local", "cache.type", "hardlink,copy"),
    ]
    for command in settings:
        toy.run(*command)
    lock = (toy.path / "dvc.lock").read_bytes()
    toy.run("dvc", "repro", "-q", "--force")
    assert (toy.path / "ran.txt").exists()
    (toy.path / "ran.txt").unlink()
    assert (toy.path / "dvc.lock").read_bytes() == lock  # where bytes lie is no part of a result
    assert toy.git("status", "--short") == ""

    other = clone(toy, tmp_path / "second/project")
    for command in settings:
        other.run(*command)
    other.run("dvc", "checkout", "-q")
    held = {path.stat().st_ino for path in objects(shared)}
    assert len(held) == OBJECTS
    for project in (toy, other):
        assert {path.stat().st_ino for path in results(project)} < held
    assert not (other.path / ".dvc/cache").exists()
    assert_complete(other, toy)
