"""params.yaml: what loads, and that every mistake is one line which names the key."""

import copy
import math
import re
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import compose_and_dump

from fvq.config import PublishedExtractor, StudyExtractor, load_parameters
from fvq.runtime.batches import total_steps
from fvq.runtime.errors import UserError
from fvq.runtime.schedule import learning_rate_factor

WARM_UP = {"warmup": 0.1, "warmup_from": 0.005, "constant": 0.3, "final": 0.01}
LINEAR = {**WARM_UP, "shape": "linear"}
ROW = {
    "label": "VQ",
    "quantizer": "vq",
    "codebook_size": 1024,
    "code_dim": 32,
    "ratio": 4,
    "epochs": None,
    "steps": 10,
    "annealing": "linear",
    "bridge": None,
}
BRIDGE = {"patch": None, "width": None, "depth": 2, "heads": 4, "layout": "grid", "block": "vit"}
EVALUATION_SET = {
    "images": "coco",
    "protocol": "adm",
    "image_size": 32,
    "center_crop": "plain",
    "turn_by_exif": False,
    "unreadable": "stop",
}
ORIGINALS = {
    "source": "originals",
    "train": "photos",
    "validation": None,
    "validation_fraction": 0.1,
    "development_kit": None,
    "image_size": 32,
    "center_crop": "adm",
    "turn_by_exif": True,
    "unreadable": "skip",
    "unpack_folder": None,
}
RESIDUAL = {**ROW, "label": "RQ", "quantizer": "residual", "bridge": BRIDGE, "options": {"inner": "fvq", "depth": 3}}
MULTISCALE = {**ROW, "label": "VAR", "quantizer": "multiscale", "options": {"scales": [1, 2, 5, 8]}}
RECIPE = {"batch_size": 32, "epochs": None, "steps": 6, "learning_rate": 2e-3, "schedule": LINEAR}
GENERATOR = {"label": "LlamaGen", "tokenizer": "vq", "width": 96, "depth": 3, "heads": 4, "recipe": RECIPE}
CONTENT = {
    "study": "smoke-photos",
    "scale": "smoke",
    "dataset": "photos",
    "selection": "main",
    "seed": 0,
    "threads": 1,
    "codebook_size": 1024,
    "code_dim": 32,
    "steps": 10,
    "shapes": {"ratio": {"base": 4}, "scales": [1, 2]},
    "train_crops": 160,
    "validation_crops": 40,
    "flip": True,
    "watch": "src/fvq/data/sources",
    "prepare_data": {
        "source": "photos",
        "image_size": 32,
        "train_crops": 160,
        "validation_crops": 40,
        "crop_side_min": 32,
        "crop_side_max": 56,
        "short_side_max": 512,
    },
    "evaluation_sets": {},
    "evaluated_elsewhere": [],
    "mapped_rows": ["vq"],
    "train_extractor": {
        "name": "photos",
        "steps": 3,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "width": 16,
        "flips": True,
        "shift": 2,
        "schedule": LINEAR,
    },
    "train_tokenizer": {
        "batch_size": 32,
        "accumulate": 1,
        "precision": "float32",
        "learning_rate": 3e-3,
        "reference_batch_size": None,
        "betas": [0.9, 0.95],
        "gradient_clip": 1.0,
        "ema_decay": None,
        "reconstruction_weight": 1.0,
        "perceptual_weight": 0.0,
        "perceptual_weights": None,
        "adversarial_weight": 0.0,
        "adversarial_start": 0,
        "commitment_weight": 0.25,
        "crop": None,
        "flip": True,
        "log_every": 25,
        "grid_every": 0,
        "probe_images": 4,
        "channels": 32,
        "multipliers": {4: [1], 8: [1, 2]},
        "residual_blocks": 1,
        "attention": False,
        "latent_channels": 32,
        "pixel_shuffle": {4: 4, 8: 4},
        "schedule": WARM_UP,
    },
    "small_experiments": {
        "toy_codebook_size": 16,
        "toy_steps": 5,
        "toy_learning_rate": 0.05,
        "toy_runs": [{"label": "VQ", "quantizer": "vq", "options": {"codebook_weight": 17}}],
        "sizes_row": "fvq",
        "sizes": [16, 64],
        "sizes_steps": 5,
    },
    "map_codes": {"features": 40, "codes": 40},
    "evaluate_tokenizer": {
        "protocol": "adm",
        "uncertainty": True,
        "allow_count": False,
        "measures": ["mse", "psnr_rgb", "ssim_g11", "lpips_alex"],
        "lpips_weights": None,
        "shown_images": 40,
    },
    "evaluate_generator": {
        "protocol": "adm",
        "uncertainty": True,
        "allow_count": False,
        "kernel_distance": False,
        "density_and_coverage": False,
        "distances": "exact",
    },
    "cache_tokens": {"views": ["center", "top_left@1.25"]},
    "train_generator": {
        "weight_decay": 0.05,
        "betas": [0.9, 0.95],
        "gradient_clip": 1.0,
        "accumulate": 1,
        "precision": "float32",
        "compile": False,
        "sharding": "none",
        "log_every": 50,
        "class_dropout": 0.1,
        "token_dropout": 0.1,
        "residual_dropout": 0.1,
        "feedforward_dropout": 0.1,
        "drop_path": 0.2,
        "feedforward_multiple_of": 32,
    },
    "recipes": {"small": {**RECIPE}, "unused": {**RECIPE, "epochs": 1.5, "steps": None}},
    "sample": {
        "count": 20,
        "labels": "balanced",
        "batch_size": 25,
        "precision": "float32",
        "cfg_scale": 1.5,
        "cfg_scale_of": {"vq": None},
        "cfg_start": 0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    },
    "sweep_guidance": {"scales": [1.0, 2.0], "count": 40},
    "swept_generators": {"vq": True},
    "rows": {"vq": ROW, "fvq": {**ROW, "label": "FVQ", "quantizer": "fvq", "bridge": BRIDGE}},
    "repeats": {"seeds": [], "rows": ["vq"]},
    "cached_rows": ["vq"],
    "generators": {"vq": GENERATOR},
}
GONE = object()


@pytest.fixture
def load(tmp_path):
    """Load the content above with the values at some dotted keys changed."""

    def load(changes):
        content = copy.deepcopy(CONTENT)
        for key, value in changes.items():
            *parents, last = key.split(".")
            place = content
            for parent in parents:
                place = place[parent]
            if value is GONE:
                del place[last]
            else:
                place[last] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_parameters(path)

    return load


def test_the_committed_parameters_load():
    parameters = load_parameters(Path(__file__).parents[1] / "params.yaml")
    for row in parameters.rows:
        assert parameters.tokenizer_config(row).codebook_size == parameters.rows[row].codebook_size
        assert parameters.schedule(row).shape == parameters.rows[row].annealing
    for generator in parameters.generators:
        assert parameters.generator_config(generator, classes=10).classes == 10


def test_what_rows_and_shared_blocks_make_together(load):
    parameters = load({"rows.fvq.ratio": 8, "rows.fvq.annealing": "cosine", "rows.fvq.code_dim": 16})
    config = parameters.tokenizer_config("fvq")
    assert config.grid == (4, 4)
    assert config.architecture.multipliers == (1, 2)
    assert config.code_dim == 16
    assert not config.frozen
    assert parameters.schedule("fvq").shape == "cosine"
    assert parameters.schedule("fvq").constant == 0.3
    generator = parameters.generator_config("vq", classes=7)
    assert (generator.vocabulary_size, generator.grid, generator.classes) == (1024, (8, 8), 7)
    assert (generator.width, generator.token_dropout, generator.drop_path) == (96, 0.1, 0.2)
    assert parameters.generators["vq"].recipe.steps == 6


def test_rows_of_quantizers_that_compose_others(load):
    parameters = load({"rows.rq": RESIDUAL, "rows.var": MULTISCALE})
    residual, multiscale = parameters.tokenizer_config("rq"), parameters.tokenizer_config("var")
    assert (residual.grid, residual.index_shape, residual.tokens) == ((8, 8), (8, 8, 3), 192)
    assert (multiscale.grid, multiscale.index_shape) == ((8, 8), (1 + 4 + 25 + 64,))


def test_the_scale_of_the_paper_composes(tmp_path):
    root = Path(__file__).parents[1]
    compose_and_dump(tmp_path / "params.yaml", str(root / "conf"), None, "config", "conf", ["scale=imagenet"])
    parameters = load_parameters(tmp_path / "params.yaml")
    shapes = {row: parameters.tokenizer_config(row).index_shape for row in parameters.rows}
    # Table 4: 8×8×4 and 680 tokens of 16,384 codes with 256 channels.
    assert (shapes.pop("rq_fvq"), shapes.pop("var_fvq")) == ((8, 8, 4), (680,))
    assert all(shape in ((16, 16), (32, 32)) for shape in shapes.values())
    for row in ("rq_fvq", "var_fvq"):
        assert (parameters.rows[row].codebook_size, parameters.rows[row].code_dim) == (16384, 256)


def test_the_recipes_of_the_paper_and_of_llamagen(tmp_path):
    """The rows of Table 2, and the same with LlamaGen's recipe, at the steps where the released schedules bend."""
    root = Path(__file__).parents[1]
    compose_and_dump(tmp_path / "params.yaml", str(root / "conf"), None, "config", "conf", ["scale=imagenet"])
    generators = load_parameters(tmp_path / "params.yaml").generators
    found = {}
    for name, generator in generators.items():
        recipe = generator.recipe
        per_epoch = 1_281_167 // recipe.batch_size
        steps = total_steps(recipe.epochs, recipe.steps, per_epoch)
        rates = [
            recipe.learning_rate * learning_rate_factor(step, steps, recipe.schedule)
            for step in (0, round(0.05 * steps) - 1, round(0.525 * steps), steps - 1)
        ]
        found[name] = (recipe.batch_size, recipe.epochs, rates)
    constant = [1e-4] * 4
    assert found == {
        "fvq_l": (2048, 300, pytest.approx([8e-4, 8e-4, 8e-4 * 0.505, 8e-6], rel=1e-4)),
        "fvq_xl": (1024, 350, pytest.approx([4e-4, 4e-4, 4e-4 * 0.505, 4e-6], rel=1e-4)),
        "fvq_l_llamagen": (256, 300, constant),
        "fvq_xl_llamagen": (256, 300, constant),
    }
    for size in ("l", "xl"):
        one, other = generators[f"fvq_{size}"], generators[f"fvq_{size}_llamagen"]
        changed = {"label": other.label, "recipe": other.recipe}
        assert one.model_copy(update=changed) == other


PUBLISHED = {"name": "inception-2015", "weights": None}


def test_either_kind_of_extractor(load):
    assert isinstance(load({}).train_extractor, StudyExtractor)
    published = load({"train_extractor": PUBLISHED, "sample.count": 50_000})
    assert published.train_extractor == PublishedExtractor(name="inception-2015", weights=None)
    assert published.model_dump()["train_extractor"] == PUBLISHED
    allowed = load({"train_extractor": PUBLISHED, "evaluate_generator.allow_count": True})
    assert allowed.sample.count < 50_000


def test_originals_allow_random_crops_and_further_sets(load):
    changes = {"prepare_data": ORIGINALS, "train_tokenizer.crop": [0.8, 1.0]}
    parameters = load({**changes, "evaluation_sets": {"coco": EVALUATION_SET}, "evaluated_elsewhere": ["fvq"]})
    assert parameters.train_tokenizer.crop == (0.8, 1.0)
    assert parameters.evaluation_sets["coco"].center_crop == "plain"


AT_256 = {"prepare_data.image_size": 256, "evaluate_tokenizer.protocol": "fvq-released"}


def test_the_released_protocol_is_for_crops_without_scaling(load):
    assert load(AT_256).evaluate_tokenizer.protocol == "fvq-released"
    originals = {**ORIGINALS, "image_size": 256, "center_crop": "plain"}
    assert load({**AT_256, "prepare_data": originals}).prepare_data.center_crop == "plain"
    # ADM's crop for the usual figures, and the released one for a set of its own, as scale=imagenet has it.
    released = {**EVALUATION_SET, "protocol": "fvq-released", "image_size": 256}
    changes = {"prepare_data": {**originals, "center_crop": "adm"}, "evaluation_sets": {"plain": released}}
    parameters = load({**changes, "evaluated_elsewhere": ["vq"]})
    assert parameters.evaluate_tokenizer.protocol == "adm"
    assert parameters.evaluation_sets["plain"].protocol == "fvq-released"


def test_any_source_of_images(load):
    digits = {"source": "digits", "image_size": 32, "validation_fraction": 0.2}
    assert load({"prepare_data": digits}).prepare_data.source == "digits"
    folder = {**digits, "source": "folder", "folder": "~/images"}
    assert load({"prepare_data": folder}).prepare_data.folder == "~/images"


def test_a_row_can_have_its_own_warm_up(load):
    parameters = load({"rows.fvq.warmup": 0})
    assert (parameters.schedule("fvq").warmup, parameters.schedule("vq").warmup) == (0, 0.1)


def test_a_generator_can_have_its_own_guidance(load):
    own, shared = load({"sample.cfg_scale_of": {"vq": 3.0}}).sample.of("vq"), load({}).sample.of("vq")
    assert (own.cfg_scale, shared.cfg_scale) == (3.0, 1.5)
    assert own.model_copy(update={"cfg_scale": 1.5}) == shared


def test_two_rows_of_one_name_are_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(CONTENT).replace("\n  vq:\n    annealing", "\n  fvq:\n    annealing"))
    with pytest.raises(UserError, match="fvq is there twice"):
        load_parameters(path)


WRONG = [
    # keys
    ({"seeed": 1}, "seeed: is no known parameter"),
    ({"scale": GONE}, "scale: is missing"),
    ({"train_tokenizer.batchsize": 3}, "train_tokenizer.batchsize: is no known parameter"),
    ({"train_tokenizer.batch_size": GONE}, "train_tokenizer.batch_size: is missing"),
    ({"rows.vq.ratio": GONE}, "rows.vq.ratio: is missing"),
    ({"rows.fvq.label": "VQ"}, "rows.fvq.label: another row is called 'VQ' too"),
    ({"rows.fvq.warmup": 1}, "rows.fvq.warmup"),
    ({"repeats.rows": ["vqq"]}, "repeats.rows: there is no row vqq"),
    ({"repeats.seeds": [1, 0]}, "repeats.seeds: 0 is the study's own seed"),
    ({"repeats.seeds": [1, 2, 1]}, "repeats.seeds: names 1 twice"),
    ({"sample.cfg_scale_of": {"vq": 1, "xl": 2}}, "sample.cfg_scale_of.xl: there is no generator xl"),
    ({"sample.cfg_scale_of": {}}, "sample.cfg_scale_of.vq: is missing"),
    ({"train_tokenizer.pixel_shuffle": {8: 4}}, "rows.vq: train_tokenizer.pixel_shuffle has no entry for ratio 4"),
    ({"rows.fvq.bridge.dept": 3}, "rows.fvq.bridge.dept: is no known parameter"),
    ({"train_tokenizer.schedule.shape": "linear"}, "train_tokenizer.schedule.shape: is no known parameter"),
    (
        {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5},
        "a: is no known parameter; b: is no known parameter; c: is no known parameter (and 2 more)",
    ),
    # ranges
    ({"train_tokenizer.batch_size": 0}, "train_tokenizer.batch_size: should be greater than or equal to 1, not 0"),
    ({"sample.top_p": 2}, "sample.top_p: should be less than or equal to 1, not 2"),
    ({"seed": -1}, "seed: should be greater than or equal to 0, not -1"),
    ({"steps": 0}, "steps: should be greater than or equal to 1, not 0"),
    ({"train_crops": 0}, "train_crops: should be greater than or equal to 1, not 0"),
    ({"train_tokenizer.betas": [0.9, 1.5]}, "train_tokenizer.betas.1: should be less than 1, not 1.5"),
    ({"train_tokenizer.betas": [0.9]}, "train_tokenizer.betas.1: is missing"),
    ({"train_tokenizer.learning_rate": math.nan}, "train_tokenizer.learning_rate: should be a finite number, not nan"),
    ({"train_extractor.learning_rate": math.inf}, "train_extractor.learning_rate: should be a finite number, not inf"),
    (
        {"generators.vq.recipe.schedule": {**LINEAR, "warmup": math.nan}},
        "generators.vq.recipe.schedule.warmup: should be a finite number, not nan",
    ),
    (
        {"train_extractor.schedule": {**LINEAR, "final": 0}},
        "train_extractor.schedule.final: should be greater than 0, not 0",
    ),
    ({"rows": {}, "generators": {}, "cached_rows": []}, "rows: should have at least 1 entry, not 0"),
    ({"cache_tokens.views": []}, "cache_tokens.views: should have at least 1 entry, not 0"),
    ({"train_tokenizer.multipliers": {4: []}}, "train_tokenizer.multipliers.4: should have at least 1 entry, not 0"),
    (
        {"train_tokenizer.multipliers": {4: [1, 0]}},
        "train_tokenizer.multipliers.4.1: should be greater than or equal to 1, not 0",
    ),
    # types
    ({"train_tokenizer.batch_size": "many"}, "train_tokenizer.batch_size: should be a valid integer, not 'many'"),
    ({"rows.vq.steps": 1.5}, "rows.vq.steps: should be a valid integer, not 1.5"),
    ({"flip": "perhaps"}, "flip: should be a valid boolean, not 'perhaps'"),
    ({"watch": 3}, "watch: should be a valid string, not 3"),
    ({"rows.vq": None}, "rows.vq: should be a mapping of keys to values, not None"),
    ({"rows": None}, "rows: should be a mapping of keys to values, not None"),
    ({"cache_tokens.views": "center"}, "cache_tokens.views: should be a list, not 'center'"),
    ({"train_tokenizer.multipliers": {"a": [1]}}, "train_tokenizer.multipliers.a: should be a valid integer, not 'a'"),
    # choices
    (
        {"rows.vq.quantizer": "vqq"},
        "rows.vq.quantizer: should be 'vq', 'vq-ema', 'vq-l2', 'linear', 'simvq', 'mlp5', 'fvq', 'cvq', 'ibq', 'lfq', "
        "'fsq', 'residual' or 'multiscale', not 'vqq'",
    ),
    ({"rows.fvq.bridge.layout": "gird"}, "rows.fvq.bridge.layout: should be 'grid' or 'sequence', not 'gird'"),
    (
        {"train_generator.precision": "float16"},
        "train_generator.precision: should be 'float32' or 'bfloat16', not 'float16'",
    ),
    ({"train_generator.sharding": "half"}, "train_generator.sharding: should be 'none' or 'full', not 'half'"),
    ({"generators.vq.recipe": "small"}, "generators.vq.recipe: should be a mapping of keys to values, not 'small'"),
    ({"sample.labels": "all"}, "sample.labels: should be 'balanced' or 'uniform', not 'all'"),
    ({"study": "A B"}, "study: should match pattern '^[a-z0-9][a-z0-9_-]*$', not 'A B'"),
    ({"rows.A B": ROW}, "rows.A B: should match pattern '^[a-z0-9][a-z0-9_-]*$', not 'A B'"),
    ({"cache_tokens.views": ["middle"]}, "cache_tokens.views: view 'middle' is unknown; there are center, "),
    ({"cache_tokens.views": ["center", "adm"]}, "cache_tokens.views: view 'center' is named twice"),
    # unions speak of the member that was meant
    ({"prepare_data.crop_side": 8}, "prepare_data.crop_side: is no known parameter"),
    ({"prepare_data.crop_side_max": GONE}, "prepare_data.crop_side_max: is missing"),
    ({"prepare_data.image_size": 0}, "prepare_data.image_size: should be greater than 0, not 0"),
    ({"prepare_data.crop_side_max": 8}, "prepare_data: crop_side_min 32 is above crop_side_max 8"),
    (
        {"prepare_data.source": "photo"},
        "prepare_data.source: should be one of 'photos', 'digits', 'folder', 'originals', not 'photo'",
    ),
    ({"prepare_data.source": GONE}, "prepare_data.source: is missing"),
    ({"prepare_data": None}, "prepare_data: should be a mapping of keys to values, not None"),
    ({"train_extractor.stepss": 3}, "train_extractor.stepss: is no known parameter"),
    ({"train_extractor.steps": "x"}, "train_extractor.steps: should be a valid integer, not 'x'"),
    ({"train_extractor.width": 12}, "train_extractor.width: should be a multiple of 8, not 12"),
    ({"train_extractor.name": GONE}, "train_extractor.name: is missing"),
    ({"train_extractor": None}, "train_extractor: should be a mapping of keys to values, not None"),
    ({"train_extractor": "photos"}, "train_extractor: should be a mapping of keys to values, not 'photos'"),
    (
        {"train_extractor": {"name": "inception-2015", "wights": None}},
        "train_extractor.weights: is missing; train_extractor.wights: is no known parameter",
    ),
    # values that do not fit each other
    ({"rows.vq.epochs": 3}, "rows.vq: one of epochs and steps must be a number and the other null"),
    ({"rows.vq.steps": None}, "rows.vq: one of epochs and steps must be a number and the other null"),
    ({"recipes.small.epochs": 3}, "recipes.small: one of epochs and steps must be a number and the other null"),
    (
        {"generators.vq.recipe.steps": None},
        "generators.vq.recipe: one of epochs and steps must be a number and the other null",
    ),
    (
        {"rows.fvq.codebook_size": 1000},
        "rows.fvq: codebook_size 1000 is not divisible by the bridge's patch of 4 codes as a square grid; "
        "the nearest sizes that work are 900 and 1024",
    ),
    ({"rows.fvq.bridge.patch": 8}, "rows.fvq: the grid layout needs a square patch (1, 4, 16, 64, …), not 8"),
    ({"rows.fvq.bridge.heads": 5}, "rows.fvq: width 32 is not divisible by 5 heads"),
    ({"rows.fvq.bridge": None}, "rows.fvq: bridge must not be null for quantizer fvq"),
    (
        {"train_tokenizer.crop": [0.8, 1.0]},
        "train_tokenizer.crop: needs prepare_data.source originals, others hold squares; use null",
    ),
    ({"train_tokenizer.accumulate": 3}, "train_tokenizer: batch_size 32 is not divisible by accumulate 3"),
    ({"train_tokenizer.precision": "half"}, "train_tokenizer.precision: should be 'float32' or 'bfloat16', not 'half'"),
    ({"evaluated_elsewhere": ["vq"]}, "evaluated_elsewhere: names rows, and evaluation_sets is empty"),
    (
        {"evaluated_elsewhere": ["vqq"], "evaluation_sets": {"coco": EVALUATION_SET}},
        "evaluated_elsewhere: there is no row vqq",
    ),
    (
        {"evaluation_sets": {"coco": {**EVALUATION_SET, "image_size": 64}}},
        "evaluation_sets.coco.image_size: must be prepare_data's 32, not 64",
    ),
    # evaluations
    (
        {"train_extractor": PUBLISHED},
        "sample.count: a published FID of the protocol adm stands on 50,000 images, not 20; "
        "evaluate_generator.allow_count true measures these all the same",
    ),
    ({"evaluate_tokenizer.protocol": GONE}, "evaluate_tokenizer.protocol: is missing"),
    (
        {"evaluate_tokenizer.protocol": "ADM"},
        "evaluate_tokenizer.protocol: should be 'adm', 'torch-fidelity', 'pytorch-fid' or 'fvq-released', not 'ADM'",
    ),
    (
        {"evaluate_generator.protocol": "fvq-released"},
        "evaluate_generator.protocol: should be 'adm', 'torch-fidelity' or 'pytorch-fid', not 'fvq-released'",
    ),
    ({"evaluate_tokenizer.uncertainty": 0.5}, "evaluate_tokenizer.uncertainty: should be a valid boolean, not 0.5"),
    (
        {"evaluate_tokenizer.measures": ["mse", "psnr_rgb", "ssim_g11", "lpips"]},
        "evaluate_tokenizer.measures: there is no lpips; there are mse, psnr_rgb, psnr_y, ssim_g11, ",
    ),
    (
        {"evaluate_tokenizer.measures": ["mse", "psnr_y", "ssim_g11"]},
        "evaluate_tokenizer.measures: must name psnr_rgb, which the tables show",
    ),
    ({"evaluate_tokenizer.measures": "mse"}, "evaluate_tokenizer.measures: should be a list, not 'mse'"),
    ({"evaluate_generator": GONE}, "evaluate_generator: is missing"),
    ({"evaluate_generator.kid": True}, "evaluate_generator.kid: is no known parameter"),
    (
        {"evaluate_generator.distances": "float32"},
        "evaluate_generator.distances: should be 'exact' or 'float16', not 'float32'",
    ),
    (
        {"evaluation_sets": {"coco": {**EVALUATION_SET, "protocol": "coco"}}},
        "evaluation_sets.coco.protocol: should be 'adm', 'torch-fidelity', 'pytorch-fid' or 'fvq-released', not 'coco'",
    ),
    (
        {"evaluate_tokenizer.protocol": "fvq-released"},
        "evaluate_tokenizer.protocol: fvq-released needs prepare_data.image_size 256, not 32",
    ),
    (
        {**AT_256, "prepare_data": {**ORIGINALS, "image_size": 256}},
        "evaluate_tokenizer.protocol: fvq-released needs prepare_data.center_crop plain, not adm",
    ),
    (
        {"evaluation_sets": {"coco": {**EVALUATION_SET, "protocol": "fvq-released"}}},
        "evaluation_sets.coco.protocol: fvq-released needs prepare_data.image_size 256, not 32",
    ),
    (
        {
            "prepare_data.image_size": 256,
            "evaluation_sets": {
                "coco": {**EVALUATION_SET, "image_size": 256, "center_crop": "adm", "protocol": "fvq-released"}
            },
        },
        "evaluation_sets.coco.protocol: fvq-released needs evaluation_sets.coco.center_crop plain, not adm",
    ),
    ({"small_experiments.sizes_row": "vq"}, "small_experiments.sizes_row: vq is no row of the quantizer fvq"),
    (
        {"small_experiments.sizes": [64, 50]},
        "small_experiments.sizes: codebook_size 50 is not divisible by the bridge's",
    ),
    ({"small_experiments.sizes": [64, 64]}, "small_experiments.sizes: names a size twice"),
    (
        {"small_experiments.toy_runs": [{"label": "a", "quantizer": "fvq", "options": {"width": 16, "heads": 3}}]},
        "small_experiments.toy_runs: a: width 16 is not divisible by 3 heads",
    ),
    (
        {"small_experiments.toy_runs": [{"label": "a", "quantizer": "lfq", "options": {}}]},
        "small_experiments.toy_runs: a",
    ),
    (
        {"small_experiments.toy_runs": [{"label": "a", "quantizer": "residual", "options": {}}]},
        "small_experiments.toy_runs.0.quantizer: should be 'vq', 'vq-ema', 'vq-l2', 'linear', 'simvq', 'mlp5', 'fvq', "
        "'cvq', 'ibq', 'lfq' or 'fsq', not 'residual'",
    ),
    (
        {"small_experiments.sizes_row": "rq", "rows.rq": RESIDUAL},
        "small_experiments.sizes_row: rq is no row of the quantizer fvq",
    ),
    (
        {"rows.rq": {**RESIDUAL, "bridge": None}},
        "rows.rq: bridge must not be null for quantizer residual with the inner quantizer fvq",
    ),
    ({"rows.rq": {**RESIDUAL, "options": {"inner": "fsq"}}}, "rows.rq: inner must be vq, linear, simvq, mlp5 or fvq"),
    (
        {"rows.var": {**MULTISCALE, "options": {"scales": [1, 2, 4]}}},
        "rows.var: the last of scales is 4, and the token grid's side is 8 (image_size 32 over the ratio 4)",
    ),
    (
        {"rows.rq": RESIDUAL, "generators.vq.tokenizer": "rq", "cached_rows": ["rq"]},
        "generators.vq: LlamaGen learns one index a place, and the row rq has the quantizer residual, which gives",
    ),
    (
        {"rows.var": MULTISCALE, "generators.vq.tokenizer": "var", "cached_rows": ["var"]},
        "generators.vq: LlamaGen learns one index a place, and the row var has the quantizer multiscale, which gives",
    ),
    ({"rows.rq": RESIDUAL, "cached_rows": ["vq", "rq"]}, "cached_rows: must name the generators' rows once each: vq"),
    ({"rows.vq.options": {"depth": 3}}, "rows.vq: quantizer 'vq' has no option depth; its options are commitment_w"),
    ({"rows.vq.bridge": BRIDGE}, "rows.vq: bridge must be null for quantizer vq"),
    ({"rows.vq.ratio": 16}, "rows.vq: train_tokenizer.multipliers has no entry for ratio 16"),
    (
        {"train_tokenizer.multipliers": {4: [1, 2]}},
        "rows.vq: ratio is 4, and train_tokenizer's pixel_shuffle (4) and multipliers (2 levels) give 8",
    ),
    ({"prepare_data.image_size": 30}, "rows.vq: image_size 30 is not divisible by the ratio 4"),
    ({"generators.vq.tokenizer": "vqq"}, "generators.vq.tokenizer: there is no row vqq"),
    ({"generators.vq.heads": 5}, "generators.vq: width (96) must be divisible by heads (5)"),
    ({"generators.vq.width": 104}, "generators.vq: width / heads (26) must be divisible by 4"),
    ({"cached_rows": ["vq", "fvq"]}, "cached_rows: must name the generators' rows once each: vq"),
    ({"cached_rows": ["vq", "vq"]}, "cached_rows: must name the generators' rows once each: vq"),
    ({"swept_generators.vqq": False}, "swept_generators.vqq: there is no generator vqq"),
    ({"swept_generators": {}}, "swept_generators.vq: is missing; true sweeps this generator, false does not"),
    ({"swept_generators": ["vq"]}, "swept_generators: should be a mapping of keys to values, not ['vq']"),
    ({"swept_generators.vq": "twice"}, "swept_generators.vq: should be a valid boolean, not 'twice'"),
    ({"cached_rows": []}, "cached_rows: must name the generators' rows once each: vq"),
    ({"generators": {}}, "cached_rows: must name the generators' rows once each: none"),
]


@pytest.mark.parametrize(
    ("changes", "message"), WRONG, ids=[f"{number}-{next(iter(c))}" for number, (c, _) in enumerate(WRONG)]
)
def test_a_mistake_is_one_line_that_names_the_key(load, tmp_path, changes, message):
    # safe_dump sorts: of several rows with the same fault the first by name is spoken of.
    if "rows.vq: " in message and not next(iter(changes)).startswith("rows"):
        changes = {**changes, "rows.fvq": GONE}
    with pytest.raises(UserError) as caught:
        load(changes)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'params.yaml'}: {message}")
    assert "\n" not in text
    assert not re.search(
        r"tuple|dictionary|instance|Extractor|PhotoCrops|\bstudy\b.*tag|[Ii]nput", text.split(": ", 1)[1]
    )


def test_the_published_extractor_takes_nothing_of_a_study(load):
    """A classifier of the study's own must not get the published one's name."""
    with pytest.raises(UserError, match=r"train_extractor\.weights: is missing; .* is no known parameter"):
        load({"train_extractor.name": "inception-2015"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should be a mapping of keys to values, not None"),
        ("- 1\n- 2\n", r"should be a mapping of keys to values, not \[1, 2\]"),
        ("a: [1,\nb: {", "not valid YAML .*line 2"),
        ("a: \x00", "not valid YAML"),
        ("study: \udcff", "not valid YAML"),
    ],
)
def test_a_file_that_holds_no_parameters(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {message}") as caught:
        load_parameters(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_parameters(tmp_path / "nowhere.yaml")
