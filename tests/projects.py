"""Copies of this repository in temporary folders, and the commands that people give there."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def environment(home: Path, **more: str) -> dict[str, str]:
    """The commands of this Python, a home folder of its own, and a name for git."""
    home.mkdir(exist_ok=True)
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "tester",
        "GIT_AUTHOR_EMAIL": "tester@example.org",
        "GIT_COMMITTER_NAME": "tester",
        "GIT_COMMITTER_EMAIL": "tester@example.org",
        **more,
    }


class Project:
    """A repository with all files that this one tracks or would track."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = environment(path.parent / "home")

    @classmethod
    def copy(cls, path: Path) -> "Project":
        """The working tree as it is, committed as one."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            source = ROOT / name
            if source.is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, path / name)
        project = cls(path)
        project.git("init", "-q", "-b", "main")
        project.commit("A copy")
        return project

    def clone(self, path: Path) -> "Project":
        """What another person gets."""
        self.git("clone", "-q", str(self.path), str(path))
        return Project(path)

    def commit(self, message: str) -> None:
        """Commit everything that is not ignored."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)

    def git(self, *arguments: str) -> str:
        """Output of a git command that must succeed."""
        return self.run("git", *arguments).stdout

    def run(self, *command: str, code: int | None = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; it must exit with ``code``, None for any but 0. ``more`` are variables."""
        finished = subprocess.run(
            command,
            cwd=self.path,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        as_wanted = finished.returncode != 0 if code is None else finished.returncode == code
        assert as_wanted, f"{' '.join(command)} exited with {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
        return finished

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the one occurrence of ``old`` in a file."""
        path = self.path / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name}: {text.count(old)} times {old!r}"
        path.write_text(text.replace(old, new))

    def would_run(self) -> list[str]:
        """The stages that ``dvc repro`` would run now."""
        lines = self.run("dvc", "repro", "--dry").stdout.splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def run_script(shared: str, script: str, folder: Path) -> str:
    """Standard error of a Python process that runs ``shared`` and then ``script`` on ``folder``; it must succeed."""
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(shared) + textwrap.dedent(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stderr
