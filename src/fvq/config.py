"""The run's parameters: ``params.yaml``, typed. A wrong key or value is one clear line that names it."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from fvq.data.manifest import CenterCrop
from fvq.data.settings import EvaluationSet, Originals, PrepareData
from fvq.data.views import expand_views
from fvq.evaluate.neighbours import NEIGHBOURS
from fvq.evaluate.networks.classifier_training import ExtractorTraining
from fvq.evaluate.protocols import PROTOCOLS, ProtocolName
from fvq.evaluate.reconstruction import MEASURES
from fvq.generate.llamagen import LlamaGenConfig
from fvq.generate.sampling import SamplingSettings
from fvq.generate.settings import GeneratorTraining, Recipe
from fvq.quantize import build_quantizer
from fvq.runtime.batches import check_length
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.schedule import Schedule
from fvq.tokenizer.config import (
    Architecture,
    Bridge,
    Multipliers,
    OneIndexQuantizerName,
    Option,
    QuantizerName,
    TokenizerConfig,
    check_quantizer,
)
from fvq.tokenizer.settings import TokenizerTraining

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Annealing = Literal["linear", "cosine", "none"]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WarmUp(_Parameters):
    """Table 6's schedule without its shape, which is the row's."""

    warmup: float = Field(ge=0, lt=1, description="share of all steps during which the rate rises linearly")
    warmup_from: float = Field(gt=0, le=1, description="the rate's factor at the first step")
    constant: float = Field(ge=0, le=1, description="share of the remaining steps at the full rate")
    final: float = Field(gt=0, le=1, description="the rate's factor at the last step")


class Row(_Parameters):
    """One tokenizer of the study."""

    label: str = Field(min_length=1, description="how tables and plots call it")
    quantizer: QuantizerName
    codebook_size: int = Field(ge=2, le=2**31 - 1, description="number of codes K")
    code_dim: int = Field(ge=1, description="dimension of a code d")
    ratio: int = Field(ge=1, description="image side over latent side")
    epochs: float | None = Field(gt=0, description="passes over the training images; null where steps counts")
    steps: int | None = Field(ge=1, description="optimisation steps; null where epochs counts")
    annealing: Annealing = Field(description="how the learning rate falls after its constant part")
    warmup: float | None = Field(default=None, ge=0, lt=1, description="null: train_tokenizer.schedule's")
    bridge: Bridge | None = Field(description="for the quantizer fvq, also as the inner one of others, else null")
    options: dict[str, Option] = Field(default_factory=dict, description="of other quantizers, see build_quantizer")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_length(self.epochs, self.steps)
        check_quantizer(self.quantizer, self.codebook_size, self.code_dim, self.bridge, self.options)
        return self


class TrainTokenizer(TokenizerTraining):
    """What all rows share."""

    commitment_weight: float = Field(ge=0, description="β of Eq. 5")
    channels: int = Field(ge=1, description="see Architecture")
    multipliers: dict[int, Multipliers] = Field(description="channels of each level over the first's, by ratio")
    residual_blocks: int = Field(ge=1, description="see Architecture")
    attention: bool = Field(description="see Architecture")
    latent_channels: int = Field(ge=1, description="see Architecture")
    pixel_shuffle: dict[int, int] = Field(description="see Architecture, by ratio")
    schedule: WarmUp


class Repeats(_Parameters):
    """Rows that are trained and evaluated again with other seeds."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(description="none: nothing is repeated")
    rows: tuple[Name, ...] = Field(description="which rows")

    @field_validator("seeds", "rows")
    @classmethod
    def _differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if twice := [value for value, times in Counter(values).items() if times > 1]:
            raise ValueError(f"names {twice[0]} twice")
        return values


class Repetition(NamedTuple):
    """One row with one further seed."""

    row: str
    seed: int


class ToyRun(_Parameters):
    """One trajectory of the toy of Figure 2."""

    label: str = Field(min_length=1, description="how plots call it")
    quantizer: OneIndexQuantizerName
    options: dict[str, Option] = Field(description="the quantizer's own, see build_quantizer")


class SmallExperiments(_Parameters):
    """The paper's small experiments: the toy of Figure 2, and Figure 7."""

    toy_codebook_size: int = Field(ge=2, description="number of codes in the plane")
    toy_steps: int = Field(ge=2, description="steps of gradient descent")
    toy_learning_rate: float = Field(gt=0, description="of plain SGD")
    toy_runs: tuple[ToyRun, ...] = Field(min_length=1, description="the quantizers that the vector passes through")
    sizes_row: Name = Field(description="the row of quantizer fvq whose codebook size is varied")
    sizes: tuple[int, ...] = Field(min_length=1, description="codebook sizes")
    sizes_steps: int = Field(ge=1, description="optimisation steps for each size")


class MapCodes(_Parameters):
    """How many points the maps of codes and features show."""

    features: int = Field(ge=31, description="tokens of validation images")
    codes: int = Field(ge=1, description="codes")


class EvaluateTokenizer(_Parameters):
    """Figures of merit of a tokenizer."""

    protocol: ProtocolName = Field(description="how rFID is measured, see fvq.evaluate.protocols")
    uncertainty: bool = Field(description="whether to measure rFID's spread over halves and its extrapolation")
    allow_count: bool = Field(description="whether to measure rFID on another number of images than published ones")
    measures: tuple[str, ...] = Field(description="errors of an image, by the names of fvq.evaluate.reconstruction")
    lpips_weights: str | None = Field(description="file of the AlexNet trunk; null: the usual folders")
    shown_images: int = Field(ge=1, description="validation images kept for the reconstruction grid")

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        for name in measures:
            if name not in MEASURES:
                raise ValueError(f"there is no {name}; there are {', '.join(MEASURES)}")
        for needed in ("mse", "psnr_rgb", "ssim_g11"):
            if needed not in measures:
                raise ValueError(f"must name {needed}, which the tables show")
        return measures


class EvaluateGenerator(_Parameters):
    """Figures of merit of a generator's samples."""

    protocol: Literal["adm", "torch-fidelity", "pytorch-fid"] = Field(
        description="how they are measured, see fvq.evaluate.protocols"
    )
    uncertainty: bool = Field(description="whether to measure the FID's spread over halves and its extrapolation")
    allow_count: bool = Field(description="whether to measure the FID of another number of images than published ones")
    kernel_distance: bool = Field(description="whether to measure the KID as well")
    density_and_coverage: bool = Field(description="whether to measure these as well")
    distances: Literal["exact", "float16"] = Field(description="of precision and recall; float16 imitates ADM's own")


class MeasuredSet(EvaluationSet):
    """Further images that tokenizers are evaluated on."""

    protocol: ProtocolName = Field(description="how rFID is measured on them; fvq-released needs the plain crop")


class CacheTokens(_Parameters):
    """Which token tables are written."""

    views: tuple[str, ...] = Field(min_length=1, description="crops and flips per image, see fvq.data.views")

    @field_validator("views")
    @classmethod
    def _known_once_each(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        try:
            expand_views(views)
        except UserError as error:
            raise ValueError(str(error)) from None
        return views


class Generator(_Parameters):
    """One generator of the study."""

    label: str = Field(min_length=1, description="how tables and plots call it")
    tokenizer: Name = Field(description="the row whose tokens it learns")
    width: int = Field(ge=1, description="channels of the residual stream")
    depth: int = Field(ge=1, description="transformer blocks")
    heads: int = Field(ge=1, description="attention heads of a block")
    recipe: Recipe


class TrainGenerator(GeneratorTraining):
    """What all generators share."""

    class_dropout: float = Field(ge=0, lt=1, description="share of images whose class is hidden, for guidance")
    token_dropout: float = Field(ge=0, lt=1, description="dropout on the embedded sequence")
    residual_dropout: float = Field(ge=0, lt=1, description="dropout on what attention adds")
    feedforward_dropout: float = Field(ge=0, lt=1, description="dropout on what the feed-forward layer adds")
    drop_path: float = Field(ge=0, lt=1, description="share of images that skip a branch of the last block")
    feedforward_multiple_of: int = Field(ge=1, description="the feed-forward width is rounded up to a multiple of this")


class Sample(SamplingSettings):
    """How many images are sampled, and how."""

    count: int = Field(ge=2, description="images")
    labels: Literal["balanced", "uniform"] = Field(description="balanced: as many of each class; uniform: drawn")
    batch_size: int | None = Field(
        ge=1, description="images sampled at once, null plans as many as memory holds; no image depends on it"
    )
    precision: Literal["float32", "bfloat16"] = Field(description="of the generator's weights and sums")
    cfg_scale_of: dict[Name, Annotated[float, Field(ge=1)] | None] = Field(
        description="for each generator a cfg_scale of its own, or null"
    )

    def of(self, generator: str) -> "Sample":
        """The settings of one generator."""
        return self.model_copy(update={"cfg_scale": self.cfg_scale_of[generator] or self.cfg_scale, "cfg_scale_of": {}})


class SweepGuidance(_Parameters):
    """Scales of guidance to compare; how their images are drawn is in ``Sample``, but for its count and scale."""

    scales: tuple[Annotated[float, Field(ge=1)], ...] = Field(min_length=1, description="increasing; 1 is no guidance")
    count: int = Field(ge=NEIGHBOURS + 1, description="images for each scale")

    @field_validator("scales")
    @classmethod
    def _increase(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if any(following <= scale for scale, following in pairwise(scales)):
            raise ValueError(f"must increase from each to the next, not {', '.join(f'{scale:g}' for scale in scales)}")
        return scales


class PublishedExtractor(_Parameters):
    """Features of published weights instead of a classifier of the study's own."""

    name: Literal["inception-2015"] = Field(description="which network")
    weights: str | None = Field(description="path of its file; null: the usual folders")


class StudyExtractor(ExtractorTraining):
    """A classifier trained on the study's training images."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: Name = Field(description="names the figures: photos gives fd_photos")


def _kind_of_extractor(value: Any) -> str:
    """The published name stands for the published weights alone, so that no figure bears it wrongly."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "published" if name == "inception-2015" else "study"


Extractor = Annotated[
    Annotated[PublishedExtractor, Tag("published")] | Annotated[StudyExtractor, Tag("study")],
    Discriminator(_kind_of_extractor),
]


class Parameters(_Parameters):
    """Everything in ``params.yaml``."""

    study: Name = Field(description="names the folder below results/")
    scale: Name = Field(description="the group of conf/scale that composed these parameters")
    dataset: Name = Field(description="the group of conf/dataset")
    selection: Name = Field(description="the group of conf/study: which rows there are")
    seed: int = Field(ge=0, description="of everything that is drawn")
    threads: int = Field(ge=1, description="CPU threads of a stage, at most the cores it was given; sums depend on it")
    codebook_size: int = Field(ge=2, description="of the rows that do not fix their own")
    code_dim: int = Field(ge=1, description="of the rows that do not fix their own")
    steps: int | None = Field(ge=1, description="of the rows that do not fix their own")
    shapes: dict[Name, Any] = Field(description="what conf/'s rows interpolate; nothing else reads it")
    train_crops: int | None = Field(ge=1, description="for data sets that are cut from larger pictures")
    validation_crops: int | None = Field(ge=1, description="for data sets that are cut from larger pictures")
    flip: bool = Field(description="whether mirror images are images of the same class")
    watch: str = Field(description="the file or folder whose content decides whether the data is prepared anew")
    prepare_data: PrepareData
    evaluation_sets: dict[Name, MeasuredSet] = Field(description="further images that rows are evaluated on")
    evaluated_elsewhere: tuple[Name, ...] = Field(description="the rows that are evaluated on them")
    mapped_rows: tuple[Name, ...] = Field(description="the rows whose codes are mapped into the plane")
    train_extractor: Extractor
    train_tokenizer: TrainTokenizer
    small_experiments: SmallExperiments
    map_codes: MapCodes
    evaluate_tokenizer: EvaluateTokenizer
    evaluate_generator: EvaluateGenerator
    cache_tokens: CacheTokens
    cached_rows: tuple[Name, ...] = Field(description="the rows that a generator learns from")
    train_generator: TrainGenerator
    sample: Sample
    sweep_guidance: SweepGuidance
    rows: dict[Name, Row] = Field(min_length=1)
    repeats: Repeats
    recipes: dict[Name, Recipe] = Field(description="what a generator's recipe can be")
    generators: dict[Name, Generator]
    swept_generators: dict[Name, bool] = Field(description="for each generator, whether its guidance scale is swept")

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        for name in self.rows:
            try:
                self.tokenizer_config(name)
            except ValueError as error:
                raise ValueError(f"rows.{name}: {_reason(error)}") from None
        for name, generator in self.generators.items():
            if generator.tokenizer not in self.rows:
                raise ValueError(f"generators.{name}.tokenizer: there is no row {generator.tokenizer}")
            try:
                self.generator_config(name, classes=1)
            except ValueError as error:
                raise ValueError(f"generators.{name}: {_reason(error)}") from None
        if self.train_tokenizer.crop and not isinstance(self.prepare_data, Originals):
            raise ValueError("train_tokenizer.crop: needs prepare_data.source originals, others hold squares; use null")
        for key, names in (("evaluated_elsewhere", self.evaluated_elsewhere), ("mapped_rows", self.mapped_rows)):
            for row in names:
                if row not in self.rows:
                    raise ValueError(f"{key}: there is no row {row}")
        if self.evaluated_elsewhere and not self.evaluation_sets:
            raise ValueError("evaluated_elsewhere: names rows, and evaluation_sets is empty")
        for name, chosen in self.evaluation_sets.items():
            if chosen.image_size != self.prepare_data.image_size:
                raise ValueError(
                    f"evaluation_sets.{name}.image_size: must be prepare_data's {self.prepare_data.image_size}, "
                    f"not {chosen.image_size}"
                )
        wanted = {generator.tokenizer for generator in self.generators.values()}
        if sorted(wanted) != sorted(self.cached_rows):
            raise ValueError(
                f"cached_rows: must name the generators' rows once each: {', '.join(sorted(wanted)) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _rows_differ(self) -> Self:
        labels = Counter(row.label for row in self.rows.values())
        for name, chosen in self.rows.items():
            if labels[chosen.label] > 1:
                raise ValueError(f"rows.{name}.label: another row is called {chosen.label!r} too")
        for name in self.repeats.rows:
            if name not in self.rows:
                raise ValueError(f"repeats.rows: there is no row {name}")
        if self.seed in self.repeats.seeds:
            raise ValueError(f"repeats.seeds: {self.seed} is the study's own seed")
        return self

    @model_validator(mode="after")
    def _protocols_fit(self) -> Self:
        # The images of built-in data and of folders are stored as squares, in which a centre crop of their size is all.
        crop = self.prepare_data.center_crop if isinstance(self.prepare_data, Originals) else None
        self._check_protocol("evaluate_tokenizer", self.evaluate_tokenizer.protocol, "prepare_data", crop)
        for name, chosen in self.evaluation_sets.items():
            self._check_protocol(
                f"evaluation_sets.{name}", chosen.protocol, f"evaluation_sets.{name}", chosen.center_crop
            )
        return self

    def _check_protocol(self, block: str, protocol: ProtocolName, images: str, crop: CenterCrop | None) -> None:
        wanted, size = PROTOCOLS[protocol].preparation, self.prepare_data.image_size
        if wanted.size is None:
            return
        if size != wanted.size:
            raise ValueError(f"{block}.protocol: {protocol} needs prepare_data.image_size {wanted.size}, not {size}")
        if crop not in (None, wanted.crop):
            raise ValueError(f"{block}.protocol: {protocol} needs {images}.center_crop {wanted.crop}, not {crop}")

    @model_validator(mode="after")
    def _scales_fit(self) -> Self:
        for name in self.sample.cfg_scale_of:
            if name not in self.generators:
                raise ValueError(f"sample.cfg_scale_of.{name}: there is no generator {name}")
        for name in self.generators:
            if name not in self.sample.cfg_scale_of:
                raise ValueError(f"sample.cfg_scale_of.{name}: is missing; null takes sample.cfg_scale")
        return self

    @model_validator(mode="after")
    def _sweep_fits(self) -> Self:
        for name in self.swept_generators:
            if name not in self.generators:
                raise ValueError(f"swept_generators.{name}: there is no generator {name}")
        for name in self.generators:
            if name not in self.swept_generators:
                raise ValueError(f"swept_generators.{name}: is missing; true sweeps this generator, false does not")
        swept = any(self.swept_generators.values())
        if swept and self.train_generator.class_dropout == 0 and max(self.sweep_guidance.scales) > 1:
            raise ValueError(
                "sweep_guidance.scales: guidance above 1 needs generators trained with class_dropout above 0; "
                "set train_generator.class_dropout, or every one of swept_generators to false"
            )
        return self

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        chosen = self.evaluate_generator
        counts = PROTOCOLS[chosen.protocol].samples
        published = isinstance(self.train_extractor, PublishedExtractor) and counts and self.generators
        if published and not chosen.allow_count and self.sample.count not in counts:
            raise ValueError(
                f"sample.count: a published FID of the protocol {chosen.protocol} stands on {counts[0]:,} images, not "
                f"{self.sample.count:,}; evaluate_generator.allow_count true measures these all the same"
            )
        return self

    @model_validator(mode="after")
    def _small_experiments_fit(self) -> Self:
        chosen = self.small_experiments
        varied = self.rows.get(chosen.sizes_row)
        if varied is None or varied.bridge is None or varied.quantizer != "fvq":
            raise ValueError(f"small_experiments.sizes_row: {chosen.sizes_row} is no row of the quantizer fvq")
        if len(set(chosen.sizes)) < len(chosen.sizes):
            raise ValueError("small_experiments.sizes: names a size twice")
        bridge = varied.bridge.model_copy(update={"patch": None})
        for size in chosen.sizes:
            try:
                check_quantizer(varied.quantizer, size, varied.code_dim, bridge, varied.options)
            except ValueError as error:
                raise ValueError(f"small_experiments.sizes: {error}") from None
        for toy in chosen.toy_runs:
            try:
                with torch.device("meta"):
                    build_quantizer(toy.quantizer, codebook_size=chosen.toy_codebook_size, code_dim=2, **toy.options)
            except ValueError as error:
                raise ValueError(f"small_experiments.toy_runs: {toy.label}: {error}") from None
        return self

    @property
    def repetitions(self) -> dict[str, Repetition]:
        """What ``repeats`` asks for, under names such as ``fvq-1``."""
        return {f"{row}-{seed}": Repetition(row, seed) for row in self.repeats.rows for seed in self.repeats.seeds}

    def tokenizer_config(self, row: str) -> TokenizerConfig:
        """The tokenizer of a row; ValueError where its ratio has no multipliers or sizes do not fit."""
        chosen, shared = self.rows[row], self.train_tokenizer
        for name, by_ratio in (("multipliers", shared.multipliers), ("pixel_shuffle", shared.pixel_shuffle)):
            if chosen.ratio not in by_ratio:
                raise ValueError(f"train_tokenizer.{name} has no entry for ratio {chosen.ratio}")
        architecture = Architecture(
            channels=shared.channels,
            multipliers=shared.multipliers[chosen.ratio],
            residual_blocks=shared.residual_blocks,
            attention=shared.attention,
            latent_channels=shared.latent_channels,
            pixel_shuffle=shared.pixel_shuffle[chosen.ratio],
        )
        if architecture.ratio != chosen.ratio:
            raise ValueError(
                f"ratio is {chosen.ratio}, and train_tokenizer's pixel_shuffle ({architecture.pixel_shuffle}) and "
                f"multipliers ({len(architecture.multipliers)} levels) give {architecture.ratio}"
            )
        return TokenizerConfig(
            image_size=self.prepare_data.image_size,
            architecture=architecture,
            quantizer=chosen.quantizer,
            codebook_size=chosen.codebook_size,
            code_dim=chosen.code_dim,
            commitment_weight=shared.commitment_weight,
            bridge=chosen.bridge,
            options=chosen.options,
            frozen=False,
        )

    def schedule(self, row: str) -> Schedule:
        """The learning-rate schedule of a row."""
        chosen, shared = self.rows[row], self.train_tokenizer.schedule.model_dump()
        own = {} if chosen.warmup is None else {"warmup": chosen.warmup}
        return Schedule(**{**shared, **own}, shape=chosen.annealing)

    def generator_config(self, name: str, classes: int, tokenizer_sha256: str | None = None) -> LlamaGenConfig:
        """The generator of that name for ``classes`` classes; ValueError where sizes or its tokens do not fit.

        ``tokenizer_sha256`` is of the tokenizer's file, once there is one.
        """
        chosen, shared = self.generators[name], self.train_generator
        tokenizer = self.tokenizer_config(chosen.tokenizer)
        if tokenizer.index_shape != tokenizer.grid:
            raise ValueError(
                f"LlamaGen learns one index a place, and the row {chosen.tokenizer} has the quantizer "
                f"{tokenizer.quantizer}, which gives others"
            )
        return LlamaGenConfig(
            vocabulary_size=tokenizer.codebook_size,
            classes=classes,
            grid=tokenizer.grid,
            tokenizer_sha256=tokenizer_sha256,
            width=chosen.width,
            depth=chosen.depth,
            heads=chosen.heads,
            feedforward_multiple_of=shared.feedforward_multiple_of,
            class_dropout=shared.class_dropout,
            token_dropout=shared.token_dropout,
            residual_dropout=shared.residual_dropout,
            feedforward_dropout=shared.feedforward_dropout,
            drop_path=shared.drop_path,
        )


def _reason(error: ValueError) -> str:
    """The first complaint's text alone."""
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return text.removeprefix("Value error, ")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses two entries of one name, such as two rows: plain YAML forgets the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for (_, key), times in keys.items():
            if times > 1:
                raise yaml.constructor.ConstructorError(problem=f"{key} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load_parameters(path: Path | str = "params.yaml") -> Parameters:
    """Read and check the parameters.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown or missing, a value is out of range or does not fit
            another.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (commands of the pipeline run in the repository's root)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    try:
        return Parameters.model_validate(content)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, str(path), content)) from None
