"""The whole chain at ``scale=ci``: both engines, what is run again, restoring, and what bad input does."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from projects import Project

STUDY = "results/ci-photos"
FVQ_ROW = "label: FVQ\n    quantizer: fvq\n    codebook_size: 256"
STAGES = [
    "prepare_data",
    "train_extractor",
    "list_further",
    "small_experiments",
    "map_codes",
    *(
        f"{stage}@{row}"
        for stage in ("train_tokenizer", "freeze_codebook", "evaluate_tokenizer")
        for row in ("vq", "fvq")
    ),
    *(
        f"{stage}@fvq"
        for stage in ("cache_tokens", "train_generator", "sample", "evaluate_generator", "sweep_guidance")
    ),
    "render",
]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A checkout with the parameters of ``scale=ci`` in which nothing ran."""
    project = Project.copy(tmp_path_factory.mktemp("unfinished") / "a checkout")
    (project.path / "dvc.lock").unlink(missing_ok=True)
    project.run(sys.executable, "-m", "pipeline.compose", "scale=ci")
    project.commit("scale=ci")
    return project


@pytest.fixture(scope="module")
def finished(unfinished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same after ``dvc repro``."""
    project = unfinished.clone(tmp_path_factory.mktemp("finished") / "checkout")
    project.run("dvc", "repro")
    project.commit("Results")
    return project


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished checkout, its cache included, to change at will."""
    project = Project(tmp_path / "copy")
    subprocess.run(["cp", "-a", str(finished.path), str(project.path)], check=True)
    return project


def outputs(project: Project) -> dict[str, str]:
    """Hashes in dvc.lock of all outputs that do not hold wall times."""
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())
    found = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}
    return {path: md5 for path, md5 in found.items() if not path.endswith(("provenance.json", "index.html"))}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def error_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed stage prints."""
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("fvq: error: ")
    return lines[0]


class TestFinished:
    def test_nothing_is_left_to_do(self, finished: Project) -> None:
        assert finished.would_run() == []
        assert "up to date" in finished.run("dvc", "status").stdout
        assert finished.git("status", "--porcelain") == ""

    def test_snakemake_agrees(self, finished: Project) -> None:
        assert "Nothing to be done" in finished.run("snakemake", "-n").stdout

    def test_snakemake_makes_the_same(self, unfinished: Project, finished: Project, tmp_path: Path) -> None:
        project = unfinished.clone(tmp_path / "by snakemake")
        project.run("snakemake", "-c2", "--quiet")
        assert outputs(project) == outputs(finished)
        assert project.would_run() == []
        assert "up to date" in project.run("dvc", "status").stdout

    def test_every_artifact_has_a_record_of_what_made_it(self, finished: Project) -> None:
        commit = finished.git("rev-parse", "HEAD~1").strip()
        folders = [path.parent for path in (finished.path / "results").rglob("provenance.json")]
        assert len(folders) == len(STAGES) - 1  # render writes to reports/
        for folder in [*folders, finished.path / "reports"]:
            record = json.loads((folder / "provenance.json").read_text())
            assert record["git_commit"] == commit
            assert record["git_dirty"] is False
            assert record["seed"] == 0
            assert record["wall_seconds"] > 0
            assert record["versions"]["torch"]
            assert record["hardware"]["cores"] >= 1
            for name, sha256 in record["outputs"].items():
                assert digest(finished.path / name) == sha256
            # list_further writes into the folders of other stages.
            elsewhere = folder.name in ("reports", "list_further")
            assert elsewhere or {finished.path / name for name in record["outputs"]} == {
                path for path in folder.rglob("*") if path.is_file() and path.name != "provenance.json"
            }
            for name, sha256 in record["inputs"].items():
                assert digest(finished.path / name) == sha256

    def test_the_report_opens_offline_and_shows_every_row(self, finished: Project) -> None:
        page = (finished.path / "reports/index.html").read_text()
        assert "FVQ" in page and "VQ" in page
        assert 'src="http' not in page and "<link" not in page
        for table in (f"table_{number}" for number in range(1, 12)):
            assert {path.suffix for path in (finished.path / "reports/tables").glob(f"{table}.*")} == {
                ".md",
                ".tex",
                ".csv",
            }

    def test_snakemakes_own_report_has_the_page_and_the_figures(self, finished: Project, tmp_path: Path) -> None:
        finished.run("snakemake", "-c1", "--report", str(tmp_path / "report.html"))
        page = (tmp_path / "report.html").read_text()
        assert "reports/index.html" in page and "reports/figures/usage.svg" in page

    def test_dvc_shows_figures_and_plots_without_arguments(self, finished: Project) -> None:
        metrics = json.loads(finished.run("dvc", "metrics", "show", "--json").stdout)
        values = metrics[""]["data"]["reports/metrics.json"]["data"]
        assert 0 < values["fvq.usage"] <= 1
        assert "Path" in finished.run("dvc", "metrics", "diff", "HEAD~1").stdout
        assert "train_tokenizer@fvq" in finished.run("dvc", "dag").stdout
        finished.run("dvc", "plots", "show", "-o", str(finished.path.parent / "plots"))
        page = (finished.path.parent / "plots" / "index.html").read_text()
        assert '"row": "fvq"' in page

    def test_no_resume_state_is_left(self, finished: Project) -> None:
        left = [path for path in (finished.path / "runs").rglob("*") if path.is_file()]
        # What the extractor says of whole sets of images is kept: the rows' evaluations share it.
        assert {path.parent.parent for path in left} == {finished.path / "runs/ci-photos/features"}
        assert {path.name for path in left} == {"sums.safetensors", "features.npy", ".lock"}

    def test_push_and_pull_restore_a_clone_without_training(self, finished: Project, tmp_path: Path) -> None:
        remote = tmp_path / "remote"
        finished.run("dvc", "remote", "add", "--local", "-f", "-d", "folder", str(remote))
        finished.run("dvc", "push")
        clone = finished.clone(tmp_path / "clone")
        assert "up to date" not in clone.run("dvc", "status").stdout
        clone.run("dvc", "remote", "add", "--local", "-d", "folder", str(remote))
        clone.run("dvc", "pull")
        assert clone.would_run() == []
        assert "up to date" in clone.run("dvc", "status").stdout
        assert "Nothing to be done" in clone.run("snakemake", "-n").stdout
        assert digest(clone.path / "reports/index.html") == digest(finished.path / "reports/index.html")


class TestChanges:
    def test_only_what_depends_on_a_parameter_is_run_again(self, copy: Project) -> None:
        copy.edit("params.yaml", "temperature: 1.0", "temperature: 0.9")
        # And what is below sample, where the samples come out different.
        assert sorted(copy.would_run()) == ["sample@fvq", "sweep_guidance@fvq"]
        copy.run("git", "checkout", "params.yaml")
        copy.edit("params.yaml", "batch_size: 30", "batch_size: 20")  # of sample, which changes no image
        assert copy.would_run() == []
        copy.run("git", "checkout", "params.yaml")
        text = (copy.path / "params.yaml").read_text()
        before, row = text.split("\n  vq:\n")
        (copy.path / "params.yaml").write_text(before + "\n  vq:\n" + row.replace("steps: 20", "steps: 21", 1))
        assert copy.would_run() == ["train_tokenizer@vq", "map_codes", "render"]

    def test_a_hand_edit_that_conf_would_undo_is_reported(self, copy: Project) -> None:
        copy.run(sys.executable, "-m", "pipeline.compose", "--check", "scale=ci")
        copy.edit("params.yaml", "temperature: 1.0", "temperature: 0.9")
        failed = copy.run(sys.executable, "-m", "pipeline.compose", "--check", "scale=ci", code=1)
        assert "sample.temperature" in error_line(failed)

    def test_a_lock_file_that_is_not_true_is_reported(self, copy: Project) -> None:
        copy.run(sys.executable, "-m", "pipeline.lock")
        with (copy.path / "src/fvq/generate/sampling.py").open("a") as file:
            file.write("\n# changed\n")
        failed = copy.run(sys.executable, "-m", "pipeline.lock", code=1)
        assert "sample@fvq" in failed.stderr and "train_tokenizer" not in failed.stderr

    def test_an_experiment_composes_and_runs(self, copy: Project) -> None:
        copy.run("dvc", "exp", "run", "-n", "cooler", "-S", "scale=ci", "-S", "sample.temperature=0.5")
        assert "cooler" in copy.run("dvc", "exp", "show", "--csv").stdout
        trained = json.loads((copy.path / STUDY / "train_generator/fvq/provenance.json").read_text())
        assert trained["git_commit"] == copy.git("rev-parse", "HEAD~1").strip()
        # What an earlier experiment made comes out of the cache.
        again = copy.run("dvc", "exp", "run", "-S", "scale=ci")
        assert "'sample@fvq' is cached" in again.stdout

    def test_the_codebook_size_of_an_experiment_is_that_of_the_rows(self, copy: Project) -> None:
        copy.run(sys.executable, "-m", "pipeline.compose", "scale=ci", "codebook_size=262144")
        rows = yaml.safe_load((copy.path / "params.yaml").read_text())["rows"]
        assert {row["codebook_size"] for row in rows.values()} == {262144}
        trained = ["train_tokenizer@vq", "train_tokenizer@fvq", "small_experiments"]
        assert copy.would_run() == [*trained, "map_codes", "render"]

    def test_the_paper_scale_stops_at_once_and_names_the_missing_data(self, copy: Project) -> None:
        failed = copy.run("dvc", "exp", "run", "-S", "scale=imagenet", code=None)
        lines = [line for line in failed.stderr.splitlines() if line.startswith("fvq: error: ")]
        assert len(lines) == 1 and "prepare_data.train" in lines[0] and "data/imagenet/train" in lines[0]
        assert "train_" not in failed.stdout


class TestInterrupted:
    @pytest.mark.parametrize("stage", ["train_tokenizer", "train_generator"])
    def test_a_killed_training_goes_on_to_the_same_result(self, copy: Project, stage: str) -> None:
        weights = next((copy.path / STUDY / stage / "fvq").glob("*.safetensors"))
        wanted = digest(weights)
        weights.unlink()
        command = [sys.executable, "-m", f"pipeline.{stage}", "fvq"]
        slow = {**copy.environment, "FVQ_CHECKPOINT_EVERY": "3"}
        process = subprocess.Popen(
            command, cwd=copy.path, env=slow, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not list((copy.path / "runs").rglob("step-*.sha256")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not weights.exists()
        copy.run(*command)
        assert digest(weights) == wanted


class TestBadInput:
    def test_a_wrong_parameter_is_one_line_and_changes_nothing(self, copy: Project) -> None:
        weights = copy.path / STUDY / "train_tokenizer/fvq/tokenizer.safetensors"
        before = digest(weights)
        copy.edit("params.yaml", FVQ_ROW, FVQ_ROW.replace("256", "250"))
        failed = copy.run(sys.executable, "-m", "pipeline.train_tokenizer", "fvq", code=1)
        assert "rows.fvq" in error_line(failed) and "256" in error_line(failed)
        by_dvc = copy.run("dvc", "repro", code=None)
        assert "rows.fvq" in by_dvc.stderr
        assert digest(weights) == before
        by_snakemake = copy.run("snakemake", "-c1", code=None)
        assert error_line(failed) in by_snakemake.stderr.splitlines()
        assert digest(weights) == before
        copy.run("git", "checkout", "params.yaml")
        assert copy.would_run() == []

    def test_unknown_rows_are_named(self, copy: Project) -> None:
        failed = copy.run(sys.executable, "-m", "pipeline.train_tokenizer", "fqv", code=1)
        assert "fqv" in error_line(failed) and "vq, fvq" in error_line(failed)

    def test_a_missing_folder_an_empty_class_and_a_truncated_image(self, copy: Project) -> None:
        compose = [sys.executable, "-m", "pipeline.compose", "scale=ci", "dataset=folder", "prepare_data.folder=photos"]
        prepare = [sys.executable, "-m", "pipeline.prepare_data"]
        copy.run(*compose)
        assert "prepare_data.folder" in error_line(copy.run(*prepare, code=1))
        for label in ("cat", "dog"):
            (copy.path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            Image.effect_noise((40, 50), 50).convert("RGB").save(copy.path / f"photos/cat/{number}.png")
        assert "dog" in error_line(copy.run(*prepare, code=1))
        whole = (copy.path / "photos/cat/0.png").read_bytes()
        (copy.path / "photos/dog/0.png").write_bytes(whole[: len(whole) // 2])
        (copy.path / "photos/dog/1.png").write_bytes(whole)
        assert "photos/dog/0.png" in error_line(copy.run(*prepare, code=1))
        made = copy.path / "results/ci-folder/prepare_data"
        assert not made.exists() or list(made.iterdir()) == []
        (copy.path / "photos/dog/0.png").write_bytes(whole)
        copy.run(*prepare)
        assert (made / "train.parquet").exists() and (made / "validation.parquet").exists()

    def test_a_damaged_table_is_named_and_the_outputs_stay(self, copy: Project) -> None:
        table = copy.path / STUDY / "prepare_data/train.parquet"
        weights = copy.path / STUDY / "train_tokenizer/vq/tokenizer.safetensors"
        before = digest(weights)
        content = table.read_bytes()
        table.unlink()
        table.write_bytes(content[:-200])
        failed = copy.run(sys.executable, "-m", "pipeline.train_tokenizer", "vq", code=1)
        assert "train.parquet" in error_line(failed)
        assert digest(weights) == before

    def test_a_full_disk_is_one_line_and_leaves_what_was_there(self, copy: Project) -> None:
        folder = copy.path / STUDY / "prepare_data"
        before = {path.name: digest(path) for path in folder.iterdir()}
        limited = (
            "import resource, runpy, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
            "runpy.run_module('pipeline.prepare_data', run_name='__main__')"
        )
        failed = copy.run(sys.executable, "-c", limited, code=1)
        assert "prepare_data/" in error_line(failed)
        assert {path.name: digest(path) for path in folder.iterdir()} == before


@pytest.mark.slow
def test_digits_run_to_the_end(unfinished: Project, tmp_path: Path) -> None:
    project = unfinished.clone(tmp_path / "digits")
    project.run("dvc", "exp", "run", "-S", "scale=ci", "-S", "dataset=digits")
    figures = json.loads((project.path / "reports/metrics.json").read_text())
    assert "fvq.fd_digits" in figures


@pytest.mark.slow
def test_the_largest_codebook_runs_to_the_end(unfinished: Project, tmp_path: Path) -> None:
    project = unfinished.clone(tmp_path / "largest")
    finished = project.run("dvc", "exp", "run", "-S", "scale=ci", "-S", "codebook_size=262144")
    figures = json.loads((project.path / "results/ci-photos/evaluate_tokenizer/fvq/metrics.json").read_text())
    assert figures["codebook_size"] == 262144
    assert figures["usage"] <= figures["usage_tokens"] / 262144
    assert "ceiling" in finished.stdout
