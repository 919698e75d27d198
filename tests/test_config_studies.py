"""The studies that conf/ composes: which rows there are, and that at the paper's scale they are the paper's."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import compose_and_dump

from fvq.config import load_parameters
from fvq.runtime.errors import UserError
from fvq.study.paper import paper_tables

ROOT = Path(__file__).parents[1]


def composed(folder, *overrides):
    target = folder / "params.yaml"
    compose_and_dump(target, str(ROOT / "conf"), None, "config", "conf", list(overrides))
    return target


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    return load_parameters(composed(tmp_path_factory.mktemp("imagenet"), "scale=imagenet"))


@pytest.fixture
def compose_in(monkeypatch):
    """``pipeline.compose`` with a folder of one's own as the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))  # the stages are run from there, and not installed

    def enter(folder):
        monkeypatch.chdir(folder)
        import pipeline.compose

        return pipeline.compose

    return enter


@pytest.mark.parametrize(
    ("scale", "study"),
    [
        *itertools.product(["ci", "smoke", "medium", "imagenet"], ["main", "pair", "tables", "extended"]),
        ("imagenet", "imagenet"),
    ],
)
def test_every_study_composes_at_every_scale(tmp_path, scale, study):
    parameters = load_parameters(composed(tmp_path, f"scale={scale}", f"study={study}"))
    assert (parameters.scale, parameters.selection) == (scale, study)
    assert len({row.label for row in parameters.rows.values()}) == len(parameters.rows)


def test_the_default_study_is_the_papers_effect(tmp_path):
    rows = load_parameters(composed(tmp_path)).rows
    assert {(row.quantizer, row.annealing) for row in rows.values()} == {
        ("vq", "linear"),
        ("linear", "linear"),
        ("mlp5", "linear"),
        ("fvq", "linear"),
        ("fvq", "none"),
    }


@pytest.mark.parametrize("table", [1, 3, 5, 7, 8, 9])
def test_rows_at_the_papers_scale_have_the_sizes_that_it_prints(imagenet, table):
    """Every row of its own that the paper prints is a row of the study, and of these sizes."""
    printed = paper_tables()[f"table_{table}"]
    found = 0
    for line in printed.rows:
        for name in line.rows:
            if name not in imagenet.rows:
                continue
            row = imagenet.rows[name]
            if table == 5 and name == "mlp5":
                continue
            found += 1
            for key in ("codebook_size", "code_dim", "ratio", "epochs"):
                if key in line.cells:
                    value = printed.value(line.id, key)
                    assert getattr(row, key) == value, (line.id, name, key)
            if "‡" in next(iter(line.cells.values())):
                assert row.epochs == 120
        own = any("FVQ" in cell or "VQBridge" in cell for cell in line.cells.values())
        if own or table in (3, 5, 9):
            assert any(name in imagenet.rows for name in line.rows), line.id
    assert found >= {1: 4, 3: 14, 5: 8, 7: 4, 8: 4, 9: 3}[table]


def test_table_four_and_figure_six(imagenet):
    assert (imagenet.rows["rq_fvq"].epochs, imagenet.tokenizer_config("rq_fvq").index_shape) == (10, (8, 8, 4))
    assert (imagenet.rows["var_fvq"].epochs, imagenet.tokenizer_config("var_fvq").index_shape) == (40, (680,))
    base = imagenet.rows["fvq"]

    def varied(name):
        return {
            (row.bridge.width or row.code_dim, row.bridge.depth, row.bridge.patch or 16, row.codebook_size)
            for row_name, row in imagenet.rows.items()
            if row_name.startswith(name)
            and row.model_copy(update={"label": base.label, "bridge": base.bridge, "codebook_size": base.codebook_size})
            == base
        }

    assert varied("fvq_width") == {(width, 2, 16, 16384) for width in (64, 128, 512)}
    assert varied("fvq_depth") == {(256, depth, 16, 16384) for depth in (1, 4)}
    assert varied("fvq_patch") == {(256, 2, patch, 16384) for patch in (4, 64)}
    assert varied("fvq_quarter") == {(256, 2, patch, 4096) for patch in (4, 16, 64)}


def test_generators_of_table_two_are_sampled_at_the_released_scales(imagenet):
    scales = {name: imagenet.sample.of(name).cfg_scale for name in imagenet.generators}
    assert scales == {"fvq_l": 1.75, "fvq_xl": 1.65, "fvq_l_llamagen": 1.75, "fvq_xl_llamagen": 1.65}


def test_the_shrunk_study_holds_every_row_of_the_paper(imagenet, tmp_path):
    small = load_parameters(composed(tmp_path, "study=tables"))
    assert imagenet.rows.keys() < small.rows.keys()
    for name, row in imagenet.rows.items():
        shrunk = small.rows[name]
        assert (shrunk.quantizer, shrunk.annealing, shrunk.warmup) == (row.quantizer, row.annealing, row.warmup), name
        assert (shrunk.codebook_size > small.codebook_size) == (row.codebook_size > imagenet.codebook_size), name
        assert (shrunk.ratio < 4, shrunk.ratio > 4) == (row.ratio < 16, row.ratio > 16), name


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["study=tables"],
        ["scale=imagenet", "study=extended", "seed=3"],
        ["codebook_size=4096", "repeats.seeds=[1,2]"],
        ["dataset=digits", "sample.cfg_scale=2.5"],
        ["++rows.linear.warmup=0.0333"],
    ],
)
def test_a_studys_command_composes_it_again(tmp_path, compose_in, overrides):
    content = yaml.safe_load(composed(tmp_path, *overrides).read_text())
    overrides_for = compose_in(ROOT).overrides_for
    assert overrides_for(content) == overrides
    content["rows"]["mine"] = {**content["rows"]["fvq"], "label": "mine"}
    assert overrides_for(content) is None


def test_two_definitions_of_a_row_are_refused(tmp_path, compose_in):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    compose = compose_in(tmp_path).compose
    row = (tmp_path / "conf" / "rows" / "vq.yaml").read_text()
    again = tmp_path / "conf" / "rows" / "zz.yaml"
    again.write_text(row)
    with pytest.raises(UserError, match=r"zz\.yaml: the row vq is in conf/rows/vq\.yaml already"):
        compose(tmp_path / "params.yaml", [])
    again.unlink()
    (tmp_path / "conf" / "rows" / "vq.yaml").write_text(row + row)
    with pytest.raises(UserError, match="duplicate key vq"):
        compose(tmp_path / "params.yaml", [])


def test_what_a_study_needs_of_its_scale_is_named(compose_in, tmp_path):
    with pytest.raises(UserError, match=r"conf: Interpolation key 'recipes\.fvq' not found"):
        compose_in(ROOT).compose(tmp_path / "params.yaml", ["study=imagenet"])


def test_ibq_has_the_weights_that_its_authors_publish(tmp_path):
    parameters = load_parameters(composed(tmp_path, "study=extended"))
    quantizer = parameters.tokenizer_config("ibq").build_quantizer()
    assert (quantizer.commitment_weight, quantizer.codebook_weight, quantizer.entropy_weight) == (1.0, 0.25, 0.05)


def test_schedules_of_the_paper(imagenet):
    """Tables 5 and 9, and LlamaGen, which has none."""
    schedules = {name: (row.annealing, row.warmup) for name, row in imagenet.rows.items()}
    own = {name: found for name, found in schedules.items() if found != ("linear", None)}
    assert own == {
        **dict.fromkeys(("vq_l2", "vq_l2_fine", "vq_no_annealing"), ("none", 0)),
        **dict.fromkeys(
            ("linear_no_annealing", "fvq_no_annealing", "mlp5_16x_no_annealing", "fvq_16x_no_annealing"),
            ("none", None),
        ),
        "fvq_no_warmup": ("linear", 0),
        "fvq_cosine": ("cosine", None),
    }


def test_repeats_are_named_after_row_and_seed(tmp_path):
    parameters = load_parameters(composed(tmp_path, "repeats.seeds=[1,12]", "repeats.rows=[fvq,vq]"))
    assert list(parameters.repetitions) == ["fvq-1", "fvq-12", "vq-1", "vq-12"]
    assert parameters.repetitions["vq-12"] == ("vq", 12)
    assert load_parameters(composed(tmp_path)).repetitions == {}
