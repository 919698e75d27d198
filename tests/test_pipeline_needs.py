"""What a stage asks a scheduler for, as dvc.yaml says it and as Snakemake reads it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no folder conf/scale tells which scales there are
    monkeypatch.syspath_prepend(str(ROOT))  # the stages are run from there, and not installed


def read(needs: Any, **meta: Any) -> tuple[int, dict[str, Any]]:
    from pipeline.needs import read_needs

    return read_needs({"scale": "large", "needs": needs, **meta}, "train@fvq")


def refused(needs: Any, **meta: Any) -> str:
    from fvq.runtime.errors import UserError

    with pytest.raises(UserError) as told:
        read(needs, **meta)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("needs", "resources"),
    [
        ({}, {}),
        ({"nodes": 1}, {}),
        ({"gpus": 0}, {}),
        ({"gpus": 1}, {"gres": "gpu:1"}),
        ({"gpus": 8, "gpu_type": "a100"}, {"gres": "gpu:a100:8"}),
        # Those of each node: Slurm counts `gres` so, and places a task on each node of itself.
        ({"nodes": 4, "gpus": 8, "gpu_type": "nvidia_h100_80gb"}, {"gres": "gpu:nvidia_h100_80gb:8", "nodes": 4}),
        ({"nodes": 2}, {"nodes": 2, "tasks": 2}),
        ({"memory_gb": 64}, {"mem_mb": 64_000}),
        ({"memory_gb": 0.5}, {"mem_mb": 500}),
        ({"hours": 24}, {"runtime": 1440}),
        ({"hours": 0.25}, {"runtime": 15}),
        ({"hours": 0.001}, {"runtime": 1}),  # for Slurm, none is without limit
    ],
)
def test_needs_are_resources_of_snakemakes(needs: dict[str, Any], resources: dict[str, Any]) -> None:
    assert read({"large": needs}) == (1, resources)


def test_cores_are_threads_and_come_before_those_of_any_scale() -> None:
    assert read({"large": {"cores": 16}}, threads=2) == (16, {})
    assert read({"large": {"gpus": 1}}, threads="2") == (2, {"gres": "gpu:1"})  # as DVC fills it in


@pytest.mark.parametrize("needs", [None, {}, {"small": {"gpus": 1, "cores": 8}}, {"large": None}, {"large": {}}])
def test_a_scale_without_needs_leaves_them_to_the_profile(needs: Any) -> None:
    assert read(needs, threads=2) == (2, {})


def test_a_stage_without_meta_asks_for_one_core() -> None:
    from pipeline.needs import read_needs

    assert read_needs({}, "train@fvq") == (1, {})


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        ({"gpu": 8}, "gpu: is no known parameter"),
        ({"nodes": 0}, "nodes: should be greater than or equal to 1, not 0"),
        ({"nodes": 1.5}, "nodes: should be a valid integer, not 1.5"),
        ({"gpus": -1}, "gpus: should be greater than or equal to 0, not -1"),
        ({"gpus": "many"}, "gpus: should be a valid integer, not 'many'"),
        ({"gpus": 1, "gpu_type": "a100:2"}, "gpu_type: should match pattern"),
        ({"gpus": 1, "gpu_type": ""}, "gpu_type: should match pattern"),
        ({"gpu_type": "a100"}, "gpu_type without gpus"),
        ({"cores": 0}, "cores: should be greater than or equal to 1, not 0"),
        ({"memory_gb": 0}, "memory_gb: should be greater than 0, not 0"),
        ({"memory_gb": "64G"}, "memory_gb: should be a valid number, not '64G'"),
        ({"hours": float("inf")}, "hours: should be a finite number, not inf"),
        ({"hours": "24:00:00"}, "hours: should be a valid number, not '24:00:00'"),
        ([8], "should be a mapping of keys to values"),
        ("8 GPUs", "should be a mapping of keys to values"),
    ],
)
def test_a_wrong_need_is_named_with_its_stage(needs: Any, told: str) -> None:
    assert refused({"large": needs}).startswith(f"dvc.yaml: train@fvq: meta.needs.large: {told}")


def test_every_wrong_need_is_named() -> None:
    told = refused({"large": {"gpu": 8, "hours": 0}})
    assert "gpu: is no known parameter" in told
    assert "hours: should be greater than 0, not 0" in told


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ({"needs": [{"large": {"gpus": 1}}]}, "needs: should be a mapping of scales to needs"),
        ({"needs": {"large": {}}, "threads": "two"}, "threads: should be a number from 1, not two"),
        ({"needs": {"large": {}}, "threads": 0}, "threads: should be a number from 1, not 0"),
        ({"needs": {}, "need": {"large": {"gpus": 8}}}, "need: no such key; known are threads, scale, needs"),
    ],
)
def test_wrong_meta_is_named_with_its_stage(meta: dict[str, Any], told: str) -> None:
    assert refused(**meta) == f"dvc.yaml: train@fvq: meta.{told}"


def test_resources_that_nothing_heeds_are_refused() -> None:
    from fvq.runtime.errors import UserError
    from pipeline.needs import check_resources

    check_resources([], "default-resources")
    with pytest.raises(UserError, match=r"^default-resources: runtme: no such resource; did you mean runtime\?$"):
        check_resources(["mem_mb", "runtme"], "default-resources")
    with pytest.raises(
        UserError, match=r"^set-resources: render: walltime_limit_of_jobs: no such resource; known are mem,"
    ):
        check_resources(["walltime_limit_of_jobs"], "set-resources: render")


def test_the_resources_of_the_committed_profile_are_known() -> None:
    from pipeline.needs import check_resources

    text = (ROOT / "slurm/profile.v9+.yaml").read_text()
    commented = re.sub(r"^  # (\w+: )", r"  \1", text, flags=re.MULTILINE)
    names = yaml.safe_load(commented)["default-resources"]
    assert {"mem_mb", "runtime", "slurm_partition", "slurm_account", "slurm_extra"} <= names.keys()
    assert names.keys() > yaml.safe_load(text)["default-resources"].keys()
    check_resources(names, "default-resources")
    # What stages ask for comes to Snakemake by the same names.
    check_resources(read({"large": {"nodes": 2, "gpus": 1, "memory_gb": 1, "hours": 1}})[1], "")
    check_resources(read({"large": {"nodes": 2}})[1], "")


def test_the_committed_needs_are_valid_at_every_scale_that_they_name() -> None:
    from pipeline.needs import read_needs

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    scales = {path.stem for path in (ROOT / "conf/scale").glob("*.yaml")}
    asked = {}
    for name, stage in stages.items():
        meta = stage.get("do", stage)["meta"]
        assert meta["threads"] == "${threads}", name
        needs = meta.get("needs", {})
        assert needs.keys() <= scales, name
        assert not needs or meta["scale"] == "${scale}", name
        for scale in needs:
            asked[name, scale] = read_needs({**meta, "threads": 2, "scale": scale}, name)
    threads, resources = asked["train_tokenizer", "imagenet"]
    assert threads >= 8
    assert resources["gres"] == "gpu:a100:8"
    assert resources["runtime"] >= 60


def test_needs_of_a_misspelt_scale_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert read({"imagenet": {"gpus": 8}}, scale="imagenet")[1] == {"gres": "gpu:8"}
    told = refused({"imagnet": {"gpus": 8}}, scale="imagenet")
    assert told.startswith("dvc.yaml: train@fvq: meta.needs: imagnet is no scale; there are ci, imagenet, ")
