"""What a finished study left on disk, read and checked: figures of one protocol, or an error that names the file."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from fvq.evaluate.figure_names import INCEPTION_2015, distance_name, reconstruction_distance_name, score_name
from fvq.evaluate.record import Record, read_record
from fvq.runtime.errors import UserError
from fvq.runtime.text import count
from fvq.study.archives import Images, image_shape, read_images, read_labels
from fvq.study.experiments import CodeMap, SizeCurve, Trajectory, read_code_maps, read_sizes, read_trajectories
from fvq.study.guidance import Sweep, read_sweep
from fvq.study.history import History, read_history
from fvq.study.names import further_figures, neighbour_shares, sample_figures
from fvq.study.runs import StageRun, read_runs
from fvq.study.token_tables import TokenTableSize, read_token_tables

RECONSTRUCTIONS_SHOWN = 10
CLASSES_SHOWN = 10
SAMPLES_PER_CLASS = 8

# Which the measures of an evaluation may leave out.
_OPTIONAL_FIGURES = (
    "psnr_y",
    "ssim_g11_dr2",
    "ssim_u7",
    "ssim_u7_dr2",
    "lpips_alex",
    "lpips_vgg",
)
_TOKENIZER_FIGURES = (
    "usage",
    "usage_codes",
    "codebook_size",
    "usage_tokens",
    "usage_ceiling",
    "perplexity",
    "mse",
    "psnr_rgb",
    "ssim_g11",
    "samples",
)


@dataclass(frozen=True)
class TokenizerRow:
    """One tokenizer of the study. ``settings`` are its parameters; images are uint8 (n, H, W, 3), n at most ten.

    ``elsewhere`` has the figures on further image sets by the set's name; ``repeats`` the figures by further seeds.
    """

    name: str
    label: str
    settings: dict[str, Any]
    figures: dict[str, float]
    elsewhere: dict[str, dict[str, float]]
    repeats: dict[int, dict[str, float]]
    history: History
    original: Images
    reconstruction: Images

    def values(self, figure: str) -> list[float]:
        """A figure of every seed that has it, the study's own first."""
        return [figures[figure] for figures in (self.figures, *self.repeats.values()) if figure in figures]

    def mean(self, figure: str) -> float:
        """The mean over seeds; the figure itself where there is one seed."""
        return statistics.fmean(self.values(figure))

    def seed_spread(self, figure: str) -> float | None:
        """The standard deviation over seeds; None where there is one seed."""
        values = self.values(figure)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def annealed(self) -> bool:
        """Whether the learning rate fell in training."""
        return self.settings["annealing"] not in ("none", False)

    @property
    def length(self) -> str:
        """How long it trained, in words."""
        unit = "steps" if self.settings.get("epochs") is None else "epochs"
        return f"{count(self.settings[unit])} {unit}"


@dataclass(frozen=True)
class GeneratorRow:
    """One generator of the study, on the tokens of the row ``tokenizer``.

    ``samples`` maps class indices to uint8 (m, H, W, 3); ``parameters`` is None if not recorded.
    """

    name: str
    label: str
    tokenizer: str
    settings: dict[str, Any]
    figures: dict[str, float]
    parameters: int | None
    samples: dict[int, Images]


@dataclass(frozen=True)
class Study:
    """Everything the rendering shows. ``image_size`` is (height, width); ``classes`` is empty without generators.

    ``parameters`` are all of the study's; ``elsewhere`` are the protocols of further image sets by their names;
    ``commands`` say what makes the result of a run, by the run's name, and everything, under ""; ``projector_costs``
    are the multiply-adds of Table 10 by projector and codebook size.
    """

    name: str
    scale: str
    dataset: str
    seed: int
    image_size: tuple[int, int]
    extractor: str
    rows: tuple[TokenizerRow, ...]
    generators: tuple[GeneratorRow, ...]
    tokenizer_protocol: dict[str, str]
    generator_protocol: dict[str, str]
    elsewhere: dict[str, dict[str, str]]
    parameters: Mapping[str, Any]
    classes: tuple[str, ...]
    trajectories: tuple[Trajectory, ...]
    code_maps: tuple[CodeMap, ...]
    sizes: tuple[SizeCurve, ...]
    sweeps: tuple[Sweep, ...]
    token_tables: tuple[TokenTableSize, ...]
    runs: tuple[StageRun, ...]
    commands: Mapping[str, str]
    projector_costs: Mapping[tuple[str, int], int]

    @property
    def inception(self) -> bool:
        """Whether the figures stand on the Inception features of 2015, the only ones that give an FID."""
        return self.extractor == INCEPTION_2015

    @property
    def rfd(self) -> str:
        """The key of the Fréchet distance of reconstructions."""
        return reconstruction_distance_name(self.extractor, self.tokenizer_protocol["protocol"])

    def rfd_elsewhere(self, image_set: str) -> str:
        """The same on a further image set, whose protocol may be another."""
        protocol = self.elsewhere[image_set]
        return reconstruction_distance_name(protocol["protocol_extractor"], protocol["protocol"])

    def run(self, stage: str, row: str | None = None) -> StageRun:
        """What is recorded of a stage; KeyError where the study has no such stage and row."""
        return {(run.stage, run.row): run for run in self.runs}[stage, row]

    @property
    def fd(self) -> str:
        """The key of the Fréchet distance of samples."""
        return distance_name(self.extractor)

    @property
    def score(self) -> str:
        """The key of the figure in the form of the Inception Score."""
        return score_name(self.extractor)

    @property
    def precision(self) -> str:
        """The key of the samples' precision."""
        return neighbour_shares(self.generator_protocol)[0]

    @property
    def recall(self) -> str:
        """The key of the samples' recall."""
        return neighbour_shares(self.generator_protocol)[1]


def read_study(
    results: Path,
    parameters: Mapping[str, Any],
    commands: Mapping[str, str] | None = None,
    projector_costs: Mapping[tuple[str, int], int] | None = None,
) -> Study:
    """Read the rows that ``parameters`` name from ``results`` (`results/<study>/`); other folders there are ignored.

    Files: per tokenizer row `train_tokenizer/<row>/history.csv`, `evaluate_tokenizer/<row>/metrics.json` and
    `reconstructions.npz`; per generator row `evaluate_generator/<row>/metrics.json`, `sample/<row>/samples.npz` and,
    for its size, `train_generator/<row>/generator.safetensors`; `prepare_data/validation.parquet` for the class names;
    `evaluate_elsewhere/<row>/metrics/<set>.json` and `evaluate_repeat/<row>-<seed>/metrics.json` where there are some;
    `small_experiments/` (`trajectories.parquet`, `trajectories.json`, `sizes.csv`) and `map_codes/`
    (`code_map.parquet`, `code_map.json`); `sweep_guidance/<generator>/guidance.csv` of the swept generators;
    `cache_tokens/<row>/size.json` of the generators' rows and every stage's `provenance.json` where there is one.

    Raises:
        UserError: a file is missing, damaged, lacks a figure, was made under another protocol than its fellows, or is
            not what the stage wrote that recorded it.
    """
    rows = dict(parameters["rows"])
    generators = dict(parameters.get("generators") or {})
    if not rows:
        raise UserError("rows: a study needs at least one row")
    for name, settings in generators.items():
        if settings["tokenizer"] not in rows:
            raise UserError(f"generators.{name}.tokenizer: there is no row {settings['tokenizer']} in this study")
    swept = [name for name, chosen in (parameters.get("swept_generators") or {}).items() if chosen]
    for name in swept:
        if name not in generators:
            raise UserError(f"swept_generators: there is no generator {name} in this study")
    cached = list(dict.fromkeys(settings["tokenizer"] for settings in generators.values()))

    repeats = parameters.get("repeats") or {"rows": [], "seeds": []}
    repeated = [(name, seed) for name in repeats["rows"] for seed in repeats["seeds"]]
    elsewhere = list(parameters.get("evaluated_elsewhere") or [])
    sets = list(parameters.get("evaluation_sets") or {}) if elsewhere else []
    runs = read_runs(
        results,
        rows=list(rows),
        repeated={f"{name}-{seed}": seed for name, seed in repeated},
        sets=sets,
        elsewhere=elsewhere,
        cached=cached,
        generators=list(generators),
        swept=swept,
    )

    _check_settings(runs, parameters)

    evaluated = {name: _record(results, "evaluate_tokenizer", name) for name in rows}
    again = {(name, seed): _record(results, "evaluate_repeat", f"{name}-{seed}") for name, seed in repeated}
    on_sets = {
        image_set: {
            name: _record(results, "evaluate_elsewhere", name, f"metrics/{image_set}.json") for name in elsewhere
        }
        for image_set in sets
    }
    sampled = {name: _record(results, "evaluate_generator", name) for name in generators}
    tokenizer_protocol = _common_protocol([*evaluated.values(), *again.values()])
    generator_protocol = _common_protocol(list(sampled.values()))
    protocols_elsewhere = {image_set: _common_protocol(list(found.values())) for image_set, found in on_sets.items()}
    _check_same_extractor(
        [*evaluated.values(), *sampled.values(), *(record for found in on_sets.values() for record in found.values())]
    )
    extractor = tokenizer_protocol["protocol_extractor"]
    fd = distance_name(extractor)

    def figures_of(record: Record, protocol: Mapping[str, str]) -> dict[str, float]:
        distance = reconstruction_distance_name(protocol["protocol_extractor"], protocol["protocol"])
        return _figures(record, (*_TOKENIZER_FIGURES, distance), (*_OPTIONAL_FIGURES, *_uncertainty(distance)))

    generator_figures = sample_figures(generator_protocol) if generators else []

    tokenizer_rows = tuple(
        _read_tokenizer_row(
            results,
            name,
            settings,
            figures_of(evaluated[name], tokenizer_protocol),
            {
                image_set: figures_of(found[name], protocols_elsewhere[image_set])
                for image_set, found in on_sets.items()
                if name in found
            },
            {seed: figures_of(record, tokenizer_protocol) for (row, seed), record in again.items() if row == name},
        )
        for name, settings in rows.items()
    )
    _check_same_images(results, tokenizer_rows)
    classes = _read_classes(results / "prepare_data" / "validation.parquet") if generators else ()
    return Study(
        name=parameters["study"],
        scale=parameters["scale"],
        dataset=parameters["dataset"],
        seed=parameters["seed"],
        image_size=(tokenizer_rows[0].original.shape[1], tokenizer_rows[0].original.shape[2]),
        extractor=extractor,
        rows=tokenizer_rows,
        generators=tuple(
            _read_generator_row(
                results,
                name,
                settings,
                _figures(sampled[name], generator_figures, (*_uncertainty(fd), *further_figures(generator_protocol))),
                len(classes),
            )
            for name, settings in generators.items()
        ),
        tokenizer_protocol=tokenizer_protocol,
        generator_protocol=generator_protocol,
        elsewhere=protocols_elsewhere,
        parameters=parameters,
        classes=classes,
        trajectories=read_trajectories(results / "small_experiments"),
        code_maps=read_code_maps(results / "map_codes", rows),
        sizes=read_sizes(results / "small_experiments" / "sizes.csv"),
        sweeps=tuple(
            read_sweep(
                results / "sweep_guidance" / name / "guidance.csv", name, distance=fd, score=score_name(extractor)
            )
            for name in swept
        ),
        token_tables=read_token_tables(results / "cache_tokens", cached),
        runs=runs,
        commands=commands or {},
        projector_costs=projector_costs or {},
    )


def spread(count: int, shown: int) -> list[int]:
    """``shown`` indices (or all) evenly over 0 to ``count - 1``, both ends among them."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, shown)).tolist()})


# --- checks ----------------------------------------------------------------------------------------------------------


def _record(results: Path, stage: str, row: str, file: str = "metrics.json") -> Record:
    path = results / stage / row / file
    if not path.exists():
        raise UserError(f"{path}: no such file; run {stage}@{row} first")
    return read_record(path)


def _check_settings(runs: Sequence[StageRun], parameters: Mapping[str, Any]) -> None:
    """What was trained with other settings than the study's does not bear their names."""
    for run in runs:
        name = str(run.row)
        match run.stage:
            case "train_tokenizer":
                group, shared = "rows", "train_tokenizer"
            case "repeat_tokenizer":
                name, group, shared = name.rpartition("-")[0], "rows", "train_tokenizer"
            case "train_generator":
                group, shared = "generators", "train_generator"
            case _:
                continue
        for block, settings in ((f"{group}.{name}", parameters[group][name]), (shared, parameters.get(shared) or {})):
            recorded = run.parameters.get(block) or {}
            for key, value in json.loads(json.dumps(settings)).items():
                if key != "label" and recorded.get(key, value) != value:
                    raise UserError(
                        f"{run.path}: {run.name} ran with {block}.{key} {recorded[key]!r}, the study has {value!r}; "
                        "run it again"
                    )


# --- figures ---------------------------------------------------------------------------------------------------------


def _uncertainty(distance: str) -> tuple[str, str]:
    """What an evaluation says of a distance's chance, where it was asked to."""
    return f"{distance}_spread", f"{distance}_infinity"


def _figures(record: Record, names: Sequence[str], optional: Sequence[str]) -> dict[str, float]:
    """The named figures of one evaluation."""
    for name in names:
        if name not in record.values:
            raise UserError(f"{record.name}: lacks {name}")
    found = ((name, record.values.get(name)) for name in (*names, *optional))
    return {name: value for name, value in found if isinstance(value, int | float)}


def _common_protocol(records: Sequence[Record]) -> dict[str, str]:
    """The protocol that all evaluations share; figures of different protocols must not stand in one table."""
    for record in records[1:]:
        _check_same(record, records[0], sorted(records[0].protocol.keys() | record.protocol.keys()))
    return records[0].protocol if records else {}


def _check_same_extractor(records: Sequence[Record]) -> None:
    """Tokenizers and generators are measured with one extractor."""
    for record in records[1:]:
        _check_same(record, records[0], ("protocol_extractor", "protocol_extractor_sha256"))


def _check_same(record: Record, first: Record, fields: Iterable[str]) -> None:
    for field in fields:
        if record.protocol.get(field) != first.protocol.get(field):
            raise UserError(
                f"{record.name}: {field} is {record.protocol.get(field)!r}, and {first.protocol.get(field)!r} in "
                f"{first.name}; figures of different protocols do not mix, evaluate the row again"
            )


# --- rows ------------------------------------------------------------------------------------------------------------


def _read_tokenizer_row(
    results: Path,
    name: str,
    settings: Mapping[str, Any],
    figures: dict[str, float],
    elsewhere: dict[str, dict[str, float]],
    repeats: dict[int, dict[str, float]],
) -> TokenizerRow:
    if figures["codebook_size"] != settings["codebook_size"]:
        raise UserError(
            f"{results / 'evaluate_tokenizer' / name / 'metrics.json'}: codebook_size is {figures['codebook_size']}, "
            f"and {settings['codebook_size']} in rows.{name}; the row must be trained again"
        )
    path = results / "evaluate_tokenizer" / name / "reconstructions.npz"
    kept = spread(image_shape(path, "original")[0], RECONSTRUCTIONS_SHOWN)
    images = [read_images(path, part, kept) for part in ("original", "reconstruction")]
    if image_shape(path, "original") != image_shape(path, "reconstruction"):
        raise UserError(f"{path}: original and reconstruction differ in shape")
    return TokenizerRow(
        name=name,
        label=str(settings["label"]),
        settings=dict(settings),
        figures=figures,
        elsewhere=elsewhere,
        repeats=repeats,
        history=read_history(results / "train_tokenizer" / name / "history.csv"),
        original=images[0],
        reconstruction=images[1],
    )


def _check_same_images(results: Path, rows: Sequence[TokenizerRow]) -> None:
    for row in rows[1:]:
        if not np.array_equal(row.original, rows[0].original):
            path = results / "evaluate_tokenizer" / row.name / "reconstructions.npz"
            raise UserError(f"{path}: its originals are not those of the row {rows[0].name}; evaluate the row again")


def _read_generator_row(
    results: Path,
    name: str,
    settings: Mapping[str, Any],
    figures: dict[str, float],
    class_count: int,
) -> GeneratorRow:
    path = results / "sample" / name / "samples.npz"
    labels = read_labels(path)
    if image_shape(path, "arr_0")[0] != len(labels):
        raise UserError(f"{path}: arr_0 and arr_1 differ in length")
    if labels.min() < 0 or labels.max() >= class_count:
        raise UserError(f"{path}: a label lies outside 0 to {class_count - 1}")
    present = np.unique(labels).tolist()
    shown = [present[index] for index in spread(len(present), CLASSES_SHOWN)]
    indices = {label: np.flatnonzero(labels == label)[:SAMPLES_PER_CLASS].tolist() for label in shown}
    wanted = sorted(index for chosen in indices.values() for index in chosen)
    images = dict(zip(wanted, read_images(path, "arr_0", wanted), strict=True))
    return GeneratorRow(
        name=name,
        label=str(settings["label"]),
        tokenizer=settings["tokenizer"],
        settings={key: value for key, value in settings.items() if key not in ("label", "tokenizer")},
        figures=figures,
        parameters=_count_parameters(results / "train_generator" / name / "generator.safetensors"),
        samples={label: np.stack([images[index] for index in chosen]) for label, chosen in indices.items()},
    )


def _count_parameters(path: Path) -> int | None:
    """How many numbers a weights file holds, from its header alone; None where there is no such file."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            return sum(int(math.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: damaged weights ({error})") from None


def _read_classes(path: Path) -> tuple[str, ...]:
    """Class names from an image table's metadata."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return tuple(str(name) for name in json.loads(metadata[b"fvq"])["classes"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no image table with class names ({error})") from None
