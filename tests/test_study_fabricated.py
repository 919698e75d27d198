"""A study's results folder with made-up figures, for the tests of the rendering; and that it reads back as written."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from fvq.runtime.files import sha256_file
from fvq.study.results import read_study

CLASSES = ["astronaut", "<b>&", "50% $x_1$"]
GRID = 8


def parameters(**changes):
    def row(label, quantizer, annealing="linear"):
        return {
            "label": label,
            "quantizer": quantizer,
            "codebook_size": 1024,
            "code_dim": 64,
            "ratio": 4,
            "epochs": None,
            "steps": 1000,
            "annealing": annealing,
        }

    return {
        "study": "smoke-photos",
        "scale": "smoke",
        "dataset": "photos",
        "seed": 7,
        "rows": {
            "vq": row("plain VQ", "vq"),
            "linear": row("linear", "linear"),
            "mlp5": row("MLP-5", "mlp5"),
            "fvq": row("FVQ", "fvq"),
            "fvq_no_annealing": row("FVQ, no annealing", "fvq", annealing="none"),
        },
        "generators": {
            "vq": {"label": "LlamaGen on VQ", "tokenizer": "vq", "width": 16},
            "fvq_l": {"label": "LlamaGen on FVQ", "tokenizer": "fvq", "width": 16},
        },
        "train_tokenizer": {"batch_size": 32},
        **changes,
    }


# row: codes used, mse, rfd
TOKENIZERS = {
    "vq": (25, 0.01212345, 51.26781),
    "linear": (133, 0.0080123, 49.51234),
    "mlp5": (999, 0.0077654, 48.77123),
    "fvq": (1024, 0.0071111, 25.04567),
    "fvq_no_annealing": (1024, 0.0079222, 50.49876),
}
# generator: fd, its spread, score, precision, recall
GENERATORS = {"vq": (125.123456, 2.12, 2.5012, 0.311, 0.122), "fvq_l": (61.654321, 0.871, 3.4567, 0.455, 0.288)}

# Those of the study "tables" beside the default five; row: settings that differ from FVQ's, share of codes used, mse,
# rfd.
FURTHER_TOKENIZERS = {
    "vq_l2": ({"quantizer": "vq-l2", "code_dim": 8, "annealing": "none", "bridge": None}, 0.97, 0.0074, 31.2345),
    "vq_no_annealing": ({"quantizer": "vq", "annealing": "none", "bridge": None}, 0.02, 0.0131, 55.4321),
    "fvq_d4": ({"code_dim": 4}, 1, 0.0078, 29.1234),
    "fvq_d8": ({"code_dim": 8}, 1, 0.0076, 28.2345),
    "fvq_long": ({"steps": 3000}, 1, 0.0064, 22.3456),
    "fvq_4x": ({"codebook_size": 4096}, 1, 0.0062, 21.4567),
    "fvq_4x_wide": ({"codebook_size": 4096, "code_dim": 128}, 1, 0.0061, 20.5678),
    "fvq_4x_wide_long": ({"codebook_size": 4096, "code_dim": 128, "steps": 3000}, 1, 0.006, 19.6789),
    "fvq_16x": ({"codebook_size": 16384}, 0.99, 0.0059, 18.7891),
    "fvq_16x_long": ({"codebook_size": 16384, "steps": 3000}, 0.995, 0.0058, 17.8912),
    "vq_l2_fine": (
        {"quantizer": "vq-l2", "code_dim": 8, "ratio": 2, "annealing": "none", "bridge": None},
        0.96,
        0.003,
        9.1234,
    ),
    "fvq_fine": ({"ratio": 2}, 1, 0.0025, 8.2345),
    "linear_no_annealing": ({"quantizer": "linear", "annealing": "none", "bridge": None}, 1, 0.0083, 47.3456),
    "mlp5_16x_no_annealing": (
        {"quantizer": "mlp5", "codebook_size": 16384, "annealing": "none", "bridge": None},
        0.2,
        0.0079,
        46.4567,
    ),
    "mlp5_16x": ({"quantizer": "mlp5", "codebook_size": 16384, "bridge": None}, 0.22, 0.0077, 45.5678),
    "fvq_16x_no_annealing": ({"codebook_size": 16384, "annealing": "none"}, 0.98, 0.0069, 35.6789),
    "fvq_no_warmup": ({"warmup": 0}, 0.9, 0.0081, 39.7891),
    "fvq_cosine": ({"annealing": "cosine"}, 1, 0.0072, 25.8912),
    "fvq_width_quarter": ({"bridge": {"width": 16}}, 1, 0.0075, 27.9123),
    "fvq_width_half": ({"bridge": {"width": 32}}, 1, 0.0073, 26.1234),
    "fvq_width_double": ({"bridge": {"width": 128}}, 1, 0.007, 24.2345),
    "fvq_depth_1": ({"bridge": {"depth": 1}}, 1, 0.0074, 27.3456),
    "fvq_depth_4": ({"bridge": {"depth": 4}}, 1, 0.007, 24.4567),
    "fvq_patch_small": ({"bridge": {"patch": 1}}, 0.95, 0.0076, 28.5678),
    "fvq_patch_large": ({"bridge": {"patch": 16}}, 1, 0.0073, 26.6789),
    "fvq_quarter_patch_small": ({"codebook_size": 256, "bridge": {"patch": 1}}, 1, 0.009, 36.7891),
    "fvq_quarter_patch_middle": ({"codebook_size": 256, "bridge": {"patch": 4}}, 1, 0.0088, 35.8912),
    "fvq_quarter_patch_large": ({"codebook_size": 256, "bridge": {"patch": 16}}, 1, 0.0089, 36.9123),
    "rq_fvq": ({"quantizer": "residual", "ratio": 8, "options": {"inner": "fvq", "depth": 4}}, 1, 0.0066, 23.1234),
    "var_fvq": (
        {"quantizer": "multiscale", "options": {"inner": "fvq", "scales": [1, 2, 3, 4, 6, 8]}},
        1,
        0.0063,
        22.2345,
    ),
    "rq_vq": (
        {"quantizer": "residual", "ratio": 8, "bridge": None, "options": {"inner": "vq", "depth": 4}},
        0.4,
        0.01,
        42.3456,
    ),
    "var_vq": (
        {"quantizer": "multiscale", "bridge": None, "options": {"inner": "vq", "scales": [1, 2, 3, 4, 6, 8]}},
        0.5,
        0.0095,
        41.4567,
    ),
}
BRIDGE = {"patch": None, "width": None, "depth": 2, "heads": 4, "layout": "grid", "block": "vit"}

# What the pipeline's parameters hold beside the rows, as far as tables show it.
SCHEDULE = {"warmup": 0.1, "warmup_from": 0.005, "constant": 0.3, "final": 0.01}
TRAINING = {
    "train_tokenizer": {
        "batch_size": 32,
        "learning_rate": 3e-3,
        "betas": [0.9, 0.95],
        "reconstruction_weight": 1.0,
        "perceptual_weight": 0.0,
        "adversarial_weight": 0.5,
        "adversarial_start": 2000,
        "commitment_weight": 0.25,
        "schedule": SCHEDULE,
    },
    "train_generator": {"weight_decay": 0.05, "betas": [0.9, 0.95]},
}
RECIPE = {
    "batch_size": 64,
    "epochs": None,
    "steps": 400,
    "learning_rate": 2e-3,
    "schedule": SCHEDULE | {"warmup": 0.0, "constant": 0.05, "shape": "linear"},
}


def tables_parameters(**changes):
    """Parameters of a study of every row, with its recipes."""
    rows = {name: row | {"warmup": None, "bridge": None} for name, row in parameters()["rows"].items()}
    for name in ("fvq", "fvq_no_annealing"):
        rows[name]["bridge"] = BRIDGE
    for name, (settings, *_) in FURTHER_TOKENIZERS.items():
        bridge = settings.get("bridge", {})
        own = {"label": name.replace("_", " "), "bridge": None if bridge is None else BRIDGE | bridge}
        rows[name] = rows["fvq"] | settings | own
    generators = {
        "vq": {"label": "LlamaGen on VQ", "tokenizer": "vq", "recipe": RECIPE},
        "fvq_l": {"label": "LlamaGen on FVQ", "tokenizer": "fvq", "recipe": RECIPE | {"batch_size": 128, "steps": 300}},
    }
    return parameters() | {"study": "smoke-photos-tables", "rows": rows, "generators": generators} | TRAINING | changes


COMMON = {
    "protocol": "adm",
    "protocol_extractor": "photos",
    "protocol_extractor_sha256": "ab" * 32,
    "protocol_resize": "none",
    "protocol_preparation": "as stored",
    "protocol_reference": "photos validation",
    "protocol_reference_sha256": "01" * 32,
    "protocol_reference_images": "4000",
    "samples_sha256": "23" * 32,
    "seed": 7,
    "versions_fvq": "0.1.0",
    "versions_torch": "2.11.0",
}
RECONSTRUCTIONS = {
    **COMMON,
    "samples": 4000,
    "samples_path": "tokenizer.safetensors",
    "protocol_images": "4000",
    "protocol_score": "none",
    "protocol_neighbours": "none",
    "protocol_density_neighbours": "none",
    "protocol_neighbours_on": "none",
    "protocol_neighbours_reference_images": "none",
    "protocol_distances": "none",
    "protocol_seed": "halves 7",
}
SAMPLES = {
    **COMMON,
    "samples": 2000,
    "samples_path": "samples.npz",
    "protocol_images": "2000",
    "protocol_score": "chunks of 5000 in file order, no bias",
    "protocol_neighbours": "3",
    "protocol_density_neighbours": "none",
    "protocol_neighbours_on": "photos",
    "protocol_neighbours_reference_images": "4000",
    "protocol_distances": "exact",
    "protocol_seed": "halves 7",
}

# quantization loss in the end, by codebook size
SIZES = {64: 0.03, 256: 0.02, 1024: 0.0125}
# experiment: how far its path bends, code's distance at the start
EXPERIMENTS = {"plain VQ": (0.6, 0.5), "plain VQ with a faster codebook": (0.02, 0.2), "VQBridge <&": (0.01, 0.1)}


def numbers(row):
    """Codes used, of how many, mean squared error and Fréchet distance of a row."""
    if row in TOKENIZERS:
        codes, mse, rfd = TOKENIZERS[row]
        return codes, 1024, mse, rfd
    settings, share, mse, rfd = FURTHER_TOKENIZERS[row]
    size = settings.get("codebook_size", 1024)
    return round(share * size), size, mse, rfd


def tokenizer_metrics(row):
    codes, size, mse, rfd = numbers(row)
    return {
        "usage": codes / size,
        "usage_codes": codes,
        "codebook_size": size,
        "usage_tokens": 256000,
        "usage_ceiling": 1.0,
        "perplexity": codes * 0.7,
        "mse": mse,
        "psnr_rgb": 10 * np.log10(1 / mse),
        "ssim_g11": 0.7 + mse,
        "rfd_photos": rfd,
        "rfd_photos_spread": 0.384,
        "rfd_photos_infinity": rfd - 1.5,
        **RECONSTRUCTIONS,
        "protocol_lpips_alex": "absent: no alexnet",
    }


def generator_metrics(row):
    fd, spread, score, precision, recall = GENERATORS[row]
    return {
        "fd_photos": fd,
        "fd_photos_spread": spread,
        "is_photos": score,
        "is_photos_std": 0.0,
        "precision": precision,
        "recall": recall,
        **SAMPLES,
    }


def on_inception(results):
    """Make a study's figures those of the published network."""
    renamed = {"rfd_photos": "rfid", "fd_photos": "fid", "is_photos": "inception_score", "kd_photos": "kid"}
    for path in (path for name in ("metrics.json", "metrics/*.json") for path in results.glob(f"*_*/*/{name}")):
        metrics = json.loads(path.read_text()) | {"protocol_extractor": "inception-2015"}
        if metrics["protocol_neighbours_on"] == "photos":
            metrics["protocol_neighbours_on"] = "inception-2015"
        for old, new in renamed.items():
            metrics |= {name.replace(old, new): metrics.pop(name) for name in list(metrics) if name.startswith(old)}
        write_json(path, metrics)
    record_outputs(results)
    return renamed


def pictures(count, seed):
    """Smooth coloured blobs, uint8 (count, 32, 32, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] / 31
    waves = random.normal(size=(count, 3, 3, 1, 1))
    image = 0.5 + 0.25 * np.sin(3 * waves[:, :, 0] * x + 3 * waves[:, :, 1] * y + 3 * waves[:, :, 2])
    return (255 * np.moveaxis(image, 1, -1)).astype(np.uint8)


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def record_outputs(folder):
    """Let the records in ``folder`` name the files beside them as they are now, as if their stages had written them.

    Without it, files that a test changes are refused: they are not what their stage wrote.
    """
    for path in folder.rglob("provenance.json"):
        record = json.loads(path.read_text())
        place = "/".join(["results/smoke-photos", record["stage"], *([record["row"]] if record["row"] else [])])
        files = sorted(file for file in path.parent.rglob("*") if file.is_file() and file != path)
        record["outputs"] = {f"{place}/{file.relative_to(path.parent).as_posix()}": sha256_file(file) for file in files}
        write_json(path, record)


def change_figures(results, pattern, changes, gone=()):
    """Change the figures in all files that match and take some away, as if their stages had written them so."""
    for path in results.glob(pattern):
        kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in gone}
        write_json(path, kept | changes)
    record_outputs(results)


def provenance(path, stage, row, seconds, seed=7):
    """The record of a stage, of the files that lie there already."""
    record = {
        "stage": stage,
        "row": row,
        "git_commit": "0123456789abcdef" * 2,
        "git_dirty": False,
        "wall_seconds": seconds,
        "seed": seed,
        "versions": {"python": "3.11"},
        "hardware": {"processor": "Made-up CPU", "cores": 2, "memory_gb": 8.0, "gpus": []},
        "peak_memory_mb": 812.5,
    }
    write_json(path / "provenance.json", record)
    record_outputs(path)


def history(row, position, watched=True):
    """Lines of a training's history; ``watched`` as the stage writes it for a codebook that learns by gradients."""
    codes, size, mse, _ = numbers(row)
    lines = []
    for step in range(50, 1001, 50):
        rise = 1 - np.exp(-step / (100 + 30 * position))
        usage = codes / size * rise
        line = {"step": step, "epoch": step / 250, "learning_rate": 1e-3, "loss": 0.1}
        line |= {"reconstruction": mse * (1 + 300 / step)}
        line |= {"usage": usage, "usage_tokens": 102400, "perplexity": codes * 0.5}
        if watched:
            rate = 1 if row == "fvq_no_annealing" else min(1, (1050 - step) / 700)
            line |= {"sliding_usage": 0.9 * usage, "sliding_usage_tokens": 65536}
            line |= {"code_displacement": 0.002 * rate, "code_displacement_max": 0.03 * rate}
            line |= {"feature_displacement": 0.01 * rate, "feature_displacement_max": 0.05 * rate}
            line |= {"margin_median": 0.1, "within_margin_share": 0.3 * rate, "within_joint_margin_share": 0.4 * rate}
            line |= {"switched_share": 0.2 * rate, "switched_share_same_codebook": 0.1 * rate}
            line |= {"switched_outside_margin_share": 0.04 * rate, "bound_violations": 0.0, "center_shift": 0.01 * rate}
        lines.append(line)
    return lines


def write_lines(path, lines):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def write_table(path, format_name, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    description = json.dumps({"format": format_name, "version": 1})
    pq.write_table(pa.table(columns).replace_schema_metadata({"fvq": description}), path)


def trajectories():
    """Columns of the toy's paths, and their figures."""
    lines, figures = [], {}
    for position, (name, (bend, distance)) in enumerate(EXPERIMENTS.items()):
        for step, share in enumerate(np.linspace(0, 1, 21).tolist()):
            x, y = -0.8 + share, 0.3 * share + bend * np.sin(np.pi * share)
            lag = distance * (1 - share)
            lines.append((name, step, x, y, x + lag, y - lag, 0.2, 0.3, position))
        figures[name] = {"path_ratio": 1 + bend, "turning_net": 400 * bend, "distance_first": 0.7 * distance}
        figures[name] |= {"turning": 500 * bend, "distance_last": 0.0, "code_switches": 0.0}
    names = ("experiment", "step", "z_e_x", "z_e_y", "z_q_x", "z_q_y", "target_x", "target_y", "index")
    return dict(zip(names, zip(*lines, strict=True), strict=True)), figures


def code_maps():
    """Columns of the map of codes, and its figures; the MLP has none."""
    random = np.random.default_rng(0)
    columns, figures = {name: [] for name in ("row", "kind", "x", "y", "used")}, {}
    for row, (codes, _, _) in TOKENIZERS.items():
        if row == "mlp5":
            continue
        points = random.normal(scale=9, size=(150, 2))
        columns["row"] += [row] * 150
        columns["kind"] += ["feature"] * 90 + ["code"] * 60
        columns["x"] += points[:, 0].tolist()
        columns["y"] += points[:, 1].tolist()
        columns["used"] += [None] * 90 + (random.random(60) < codes / 1024).tolist()
        figures[row] = {"usage": codes / 1024, "tokens": 64000, "ceiling": 1.0}
    columns |= {name: pa.array(columns[name], pa.float32()) for name in ("x", "y")}
    return columns, figures


def sizes():
    return [
        {"codebook_size": size, "step": step, "loss": end * (1 + 2 * np.exp(-step / 60)), "usage": 0.9}
        for size, end in SIZES.items()
        for step in range(25, 301, 25)
    ]


def fabricate_experiments(folder):
    columns, figures = trajectories()
    write_table(folder / "small_experiments" / "trajectories.parquet", "trajectories", columns)
    write_json(folder / "small_experiments" / "trajectories.json", figures)
    write_lines(folder / "small_experiments" / "sizes.csv", sizes())
    provenance(folder / "small_experiments", "small_experiments", None, 61.0)
    columns, figures = code_maps()
    write_table(folder / "map_codes" / "code_map.parquet", "code_map", columns)
    write_json(folder / "map_codes" / "code_map.json", figures)
    provenance(folder / "map_codes", "map_codes", None, 12.0)


def fabricate_tokenizer(folder, row, position, original):
    _, _, mse, _ = numbers(row)
    trained = folder / "train_tokenizer" / row
    trained.mkdir(parents=True)
    write_lines(trained / "history.csv", history(row, position))
    provenance(trained, "train_tokenizer", row, 38.5 + position)
    evaluated = folder / "evaluate_tokenizer" / row
    write_json(evaluated / "metrics.json", tokenizer_metrics(row))
    noise = np.random.default_rng(position).normal(scale=40 * np.sqrt(mse * 100), size=original.shape)
    np.savez_compressed(
        evaluated / "reconstructions.npz",
        original=original,
        reconstruction=np.clip(original + noise, 0, 255).astype(np.uint8),
    )
    provenance(evaluated, "evaluate_tokenizer", row, 6.0)


def fabricate(folder: Path) -> Path:
    """Write a whole study's results into ``folder`` and return it."""
    table = pa.table({"image": pa.array([b"png"]), "label": pa.array([0], pa.int32())})
    header = {"format": "image_table", "version": 1, "dataset": "photos", "classes": CLASSES, "image_size": 32}
    (folder / "prepare_data").mkdir(parents=True)
    pq.write_table(
        table.replace_schema_metadata({"fvq": json.dumps(header)}), folder / "prepare_data" / "validation.parquet"
    )
    provenance(folder / "prepare_data", "prepare_data", None, 4.2)
    provenance(folder / "train_extractor", "train_extractor", None, 21.0)
    fabricate_experiments(folder)
    original = pictures(12, seed=1)
    for position, row in enumerate(TOKENIZERS):
        fabricate_tokenizer(folder, row, position, original)
    for row in GENERATORS:
        write_json(folder / "evaluate_generator" / row / "metrics.json", generator_metrics(row))
        (folder / "sample" / row).mkdir(parents=True)
        labels = np.arange(36, dtype=np.int64) % 3
        np.savez(folder / "sample" / row / "samples.npz", arr_0=pictures(36, seed=len(row)), arr_1=labels)
        (folder / "train_generator" / row).mkdir(parents=True)
        save_file(
            {"a": np.zeros((1000, 12), np.float32), "b": np.zeros(345, np.float32)},
            folder / "train_generator" / row / "generator.safetensors",
        )
        provenance(folder / "train_generator" / row, "train_generator", row, 95.0)
    return folder


def fabricate_tables(folder):
    """As ``fabricate``, with every row of ``tables_parameters``."""
    fabricate(folder)
    original = pictures(12, seed=1)
    for position, row in enumerate(FURTHER_TOKENIZERS, len(TOKENIZERS)):
        fabricate_tokenizer(folder, row, position, original)
    return folder


def fabricate_repeats(folder, rows, seeds):
    """Add further seeds of rows whose figures lie a little off; the parameters that ask for them."""
    for row in rows:
        for seed in seeds:
            codes, size, mse, rfd = numbers(row)
            fewer = max(1, codes - seed)
            changed = {"rfd_photos": rfd + 0.5 * seed, "mse": mse * (1 + seed / 50), "seed": seed}
            changed |= {"usage": fewer / size, "usage_codes": fewer, "psnr_rgb": 10 * np.log10(1 / changed["mse"])}
            name = f"{row}-{seed}"
            provenance(folder / "repeat_tokenizer" / name, "repeat_tokenizer", name, 45.0, seed)
            path = folder / "evaluate_repeat" / name
            write_json(path / "metrics.json", tokenizer_metrics(row) | changed)
            provenance(path, "evaluate_repeat", name, 7.0, seed)
    return {"repeats": {"rows": list(rows), "seeds": list(seeds)}}


def fabricate_elsewhere(folder, rows, image_sets=("coco",)):
    """Add the evaluations of rows on further image sets; the parameters that ask for them."""
    for row in rows:
        for position, image_set in enumerate(image_sets, 1):
            figures = tokenizer_metrics(row)
            changed = {name: figures[name] + 7.5 * position for name in ("rfd_photos", "rfd_photos_infinity")}
            changed |= {"psnr_rgb": figures["psnr_rgb"] - position, "lpips_alex": 0.2 + figures["mse"]}
            changed |= {"protocol_reference": image_set, "protocol_images": "5000", "samples": 5000}
            del figures["protocol_lpips_alex"]
            write_json(folder / "evaluate_elsewhere" / row / "metrics" / f"{image_set}.json", figures | changed)
        provenance(folder / "evaluate_elsewhere" / row, "evaluate_elsewhere", row, 8.0)
    return {"evaluation_sets": {name: {} for name in image_sets}, "evaluated_elsewhere": list(rows)}


def fabricate_every_measure(folder):
    """Give each evaluation of a study the measures that one may leave out."""
    for path in (*folder.glob("evaluate_tokenizer/*/metrics.json"), *folder.glob("evaluate_repeat/*/metrics.json")):
        metrics = json.loads(path.read_text())
        lift = metrics["mse"]
        metrics |= {"psnr_y": metrics["psnr_rgb"] + 1.5, "ssim_g11_dr2": 0.8 - lift, "ssim_u7": 0.7 - lift}
        metrics |= {"ssim_u7_dr2": 0.81 - lift, "lpips_alex": 0.1 + lift, "lpips_vgg": 0.2 + lift}
        metrics.pop("protocol_lpips_alex", None)
        write_json(path, metrics)
    for path in folder.glob("evaluate_generator/*/metrics.json"):
        metrics = json.loads(path.read_text())
        better = metrics["precision"]
        metrics |= {"sfid": 40 - better, "kd_photos": 0.03 - better / 100, "kd_photos_std": 0.001}
        metrics |= {"density": 0.5 + better, "coverage": 0.4 + better / 2}
        metrics |= {"protocol_density_neighbours": "5"}
        write_json(path, metrics)
    record_outputs(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(fabricate(tmp_path_factory.mktemp("results") / "smoke-photos"), parameters())


def test_rows_in_the_order_of_the_parameters(study):
    assert [row.name for row in study.rows] == ["vq", "linear", "mlp5", "fvq", "fvq_no_annealing"]
    assert [(row.name, row.tokenizer) for row in study.generators] == [("vq", "vq"), ("fvq_l", "fvq")]


def test_figures_and_history_as_written(study):
    fvq = study.rows[3]
    assert fvq.figures["rfd_photos"] == 25.04567
    assert fvq.history.usage_tokens == 102400
    assert fvq.history.usage_steps.tolist() == list(range(50, 1001, 50))
    assert fvq.history.error[-1] == pytest.approx(0.0071111 * 1.3)


def test_ten_images_evenly_spread(study):
    assert study.rows[0].original.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(study.rows[0].original[[0, -1]], pictures(12, seed=1)[[0, 11]])


def test_samples_are_those_of_their_class(study):
    everything = pictures(36, seed=5)
    np.testing.assert_array_equal(study.generators[1].samples[2], everything[2::3][:8])


def test_generator_size_from_the_weights(study):
    assert study.generators[0].parameters == 12345


def test_missing_provenance_is_no_error(study):
    runs = {(run.stage, run.row): run for run in study.runs}
    assert runs["train_tokenizer", "fvq"].hardware == "Made-up CPU, 2 cores, 8.0 GB"
    assert runs["freeze_codebook", "fvq"].wall_seconds is None
    assert ("cache_tokens", "fvq") in runs
    assert (runs["small_experiments", None].wall_seconds, runs["map_codes", None].wall_seconds) == (61.0, 12.0)
    assert ("train_generator", "fvq_l") in runs


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = fabricate_tables(tmp_path_factory.mktemp("results") / "smoke-photos-tables")
    changes = fabricate_repeats(folder, ["vq", "fvq"], [1, 2]) | fabricate_elsewhere(folder, ["fvq", "vq_l2"])
    fabricate_every_measure(folder)
    return read_study(folder, tables_parameters(**changes))


def test_every_row_of_the_tables(full):
    assert len(full.rows) == 37
    rows = {row.name: row for row in full.rows}
    assert rows["mlp5_16x"].figures["usage"] == pytest.approx(0.22, abs=1e-4)
    assert (rows["fvq_depth_1"].settings["bridge"]["depth"], rows["fvq"].settings["bridge"]["depth"]) == (1, 2)


def test_further_seeds_and_image_sets(full):
    rows = {row.name: row for row in full.rows}
    assert rows["fvq"].values("rfd_photos") == pytest.approx([25.04567, 25.54567, 26.04567])
    assert rows["fvq"].seed_spread("rfd_photos") == pytest.approx(0.5)
    assert rows["linear"].repeats == {} and rows["linear"].elsewhere == {}
    assert rows["fvq"].elsewhere["coco"]["rfd_photos"] == pytest.approx(25.04567 + 7.5)
    assert full.rfd_elsewhere("coco") == "rfd_photos"


def test_measures_that_an_evaluation_may_leave_out(full):
    assert {"psnr_y", "ssim_u7_dr2", "lpips_vgg"} <= full.rows[0].figures.keys()
    assert {"sfid", "kd_photos", "density", "coverage"} <= full.generators[0].figures.keys()
