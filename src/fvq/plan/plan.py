"""The plan of a study: what each row costs, and all of it."""

from collections.abc import Collection
from dataclasses import dataclass

from fvq.config import Parameters, PublishedExtractor
from fvq.data.views import expand_views
from fvq.evaluate.protocols import ProtocolName
from fvq.plan.compute import Costs
from fvq.plan.features import Kept, kept_of_reconstructions, kept_of_samples
from fvq.plan.images import Images
from fvq.plan.memory import Memory, generator_memory, tokenizer_memory
from fvq.plan.storage import Storage, generator_storage, tokenizer_storage
from fvq.plan.tracing import Cost
from fvq.plan.work import Work
from fvq.runtime.batches import steps_per_epoch, total_steps
from fvq.runtime.errors import UserError

KINDS = ("tokenizers", "token tables", "generators", "sampling", "evaluation")


@dataclass(frozen=True)
class Item:
    """Work of one kind for one row; of the reference images, which all rows share, the row is empty."""

    kind: str
    row: str
    work: Work


@dataclass(frozen=True)
class Row:
    """A tokenizer or generator: its training, its memory and what it leaves."""

    row: str
    kind: str
    label: str
    batch_size: int
    steps: int
    runs: int
    """trainings with the study's seed and those of ``repeats``"""
    step: Cost
    training: Work
    """of all runs"""
    memory: Memory
    accumulate: int
    storage: Storage
    notes: tuple[str, ...]
    """what of it is not counted"""


@dataclass(frozen=True)
class Plan:
    """Of the chosen rows of a study."""

    study: str
    scale: str
    dataset: str
    images: Images
    rows: tuple[Row, ...]
    items: tuple[Item, ...]
    reference_bytes: float
    """on disk: the features of reference images, which the rows share"""
    notes: tuple[str, ...]

    def work(self, kind: str) -> Work:
        """Of all items of a kind."""
        return sum((item.work for item in self.items if item.kind == kind), Work())


def plan_study(parameters: Parameters, images: Images, wanted: Collection[str] = ()) -> Plan:
    """What the rows named in ``wanted`` cost, tokenizers and generators of that name, by default all.

    Counted are the trainings, token tables, samples (also of ``sweep_guidance``) and the networks of evaluations, on
    one GPU: each further process maps the codebook once more. The notes say what is not counted, and what is assumed.

    Raises:
        UserError: there is no row of a name, or a batch is larger than the data.
    """
    known = list(dict.fromkeys([*parameters.rows, *parameters.generators]))
    for name in wanted:
        if name not in known:
            raise UserError(
                f"--row: there is no row {name} in the study {parameters.study}; there are {', '.join(known)}"
            )
    chosen = set(wanted or known)
    planner = _Planner(parameters, images)
    rows = [planner.tokenizer(name) for name in parameters.rows if name in chosen]
    rows += [planner.generator(name) for name in parameters.generators if name in chosen]
    planner.add_references()
    return Plan(
        study=parameters.study,
        scale=parameters.scale,
        dataset=parameters.dataset,
        images=images,
        rows=tuple(rows),
        items=tuple(planner.items),
        reference_bytes=planner.reference_bytes(),
        notes=tuple(planner.notes()),
    )


class _Planner:
    """Rows of a study, and the work they bring."""

    def __init__(self, parameters: Parameters, images: Images) -> None:
        self.parameters, self.images = parameters, images
        self.costs = Costs()
        self.items: list[Item] = []
        self._references: Kept = {}
        self._assumed: set[str] = set()

    def tokenizer(self, name: str) -> Row:
        parameters, costs = self.parameters, self.costs
        row, config, settings = parameters.rows[name], parameters.tokenizer_config(name), parameters.train_tokenizer
        repeats = len(parameters.repeats.seeds) if name in parameters.repeats.rows else 0
        steps = self._steps(row.epochs, row.steps, settings.batch_size)
        step, encode = costs.tokenizer_step(config, settings), costs.encode(config)
        work = (step.constant * settings.accumulate + step.per_image * settings.batch_size) * steps
        without = min(steps, settings.adversarial_start)
        work -= costs.discriminator(config, settings) * settings.batch_size * without
        work *= 1 + repeats
        self._add("tokenizers", name, work)
        views = len(expand_views(parameters.cache_tokens.views)) if name in parameters.cached_rows else 0
        self._add("token tables", name, encode.work(views * self.images.train))
        protocols: dict[str | None, ProtocolName] = {None: parameters.evaluate_tokenizer.protocol}
        if name in parameters.evaluated_elsewhere:
            protocols |= {images: measured.protocol for images, measured in parameters.evaluation_sets.items()}
        for images, protocol in protocols.items():
            self._share(kept_of_reconstructions(parameters, images, protocol))
        of_image = encode + costs.decode(config) + costs.extract(parameters)
        for measure in parameters.evaluate_tokenizer.measures:
            of_image += costs.measure(measure, config.image_size)
        count = self._count(None) * repeats + sum(map(self._count, protocols))
        self._add("evaluation", name, of_image.work(count))
        shown = min(parameters.evaluate_tokenizer.shown_images, self._count(None))
        return Row(
            row=name,
            kind="tokenizer",
            label=row.label,
            batch_size=settings.batch_size,
            steps=steps,
            runs=1 + repeats,
            step=step,
            training=work,
            memory=tokenizer_memory(costs, config, settings),
            accumulate=settings.accumulate,
            storage=tokenizer_storage(
                config, settings, repeats=repeats, cached_views=views * self.images.train, shown=shown
            ),
            notes=tuple(sorted(step.notes | encode.notes)),
        )

    def generator(self, name: str) -> Row:
        parameters, costs = self.parameters, self.costs
        row, settings, sample = parameters.generators[name], parameters.train_generator, parameters.sample.of(name)
        config = parameters.generator_config(name, self.images.classes)
        tokenizer = parameters.tokenizer_config(row.tokenizer)
        recipe = row.recipe
        steps = self._steps(recipe.epochs, recipe.steps, recipe.batch_size)
        step = costs.generator_step(config, bfloat16=settings.precision == "bfloat16")
        work = (step.constant * settings.accumulate + step.per_image * recipe.batch_size) * steps
        self._add("generators", name, work)
        sweep, swept = parameters.sweep_guidance, parameters.swept_generators[name]
        draws = [(sample.count, sample.cfg_scale), *((sweep.count, scale) for scale in sweep.scales if swept)]
        drawn = Work()
        for count, scale in draws:
            guided = sample.model_copy(update={"cfg_scale": scale}).guides(config.tokens)
            of_image = costs.sample(config, guided=guided, bfloat16=sample.precision == "bfloat16")
            drawn += (of_image + costs.decode(tokenizer)).work(count)
        self._add("sampling", name, drawn)
        # A sweep keeps nothing, and so measures the reference again.
        measured = sum(count for count, _ in draws) + (self._count(None) if swept else 0)
        self._add("evaluation", name, costs.extract(parameters).work(measured))
        kept, references = kept_of_samples(parameters)
        self._share(references)
        return Row(
            row=name,
            kind="generator",
            label=row.label,
            batch_size=recipe.batch_size,
            steps=steps,
            runs=1,
            step=step,
            training=work,
            memory=generator_memory(step, config),
            accumulate=settings.accumulate,
            storage=generator_storage(config, samples=sample.count, image_size=tokenizer.image_size, kept=kept),
            notes=(),
        )

    def add_references(self) -> None:
        """The passes over reference images."""
        own = self.parameters.train_extractor.name
        measured = sum(self._count(reference.images) for reference in self._references if reference.network == own)
        self._add("evaluation", "", self.costs.extract(self.parameters).work(measured))

    def reference_bytes(self) -> float:
        """Of the features that they leave."""
        return 4.0 * sum(self._count(reference.images) * kept for reference, kept in self._references.items())

    def notes(self) -> list[str]:
        """What was assumed, and what is left out."""
        notes = []
        if self.images.validation is None:
            notes.append("validation images are not known before the data is prepared; their cost is left out")
        elif self._assumed:
            sets = ", ".join(sorted(self._assumed))
            notes.append(f"assumed of evaluation sets not yet prepared: as many images as the validation part ({sets})")
        left_out = ["reading and cropping images", "what watches a training", "optimizers' arithmetic", "freezing"]
        left_out += ["small experiments", "maps of codes"]
        extractor = self.parameters.train_extractor
        if not isinstance(extractor, PublishedExtractor):
            left_out.append("the extractor's training")
        others = {reference.network for reference in self._references} - {extractor.name}
        left_out += [f"passes of {network} for precision and recall" for network in others]
        notes.append(f"not counted: {', '.join(left_out)}; on disk prepared data and tables")
        if any(item.kind == "sampling" for item in self.items):
            notes.append(
                "sampling token by token is bound by memory traffic, not arithmetic: its hours at the same utilisation "
                "are a lower bound"
            )
        return notes

    def _count(self, images: str | None) -> int:
        """Images of an evaluation set or, for None, the validation part."""
        if images is None:
            return self.images.validation or 0
        if images not in self.images.further:
            self._assumed.add(images)
        return self.images.further.get(images, self.images.validation or 0)

    def _share(self, kept: Kept) -> None:
        for reference, values in kept.items():
            self._references[reference] = max(values, self._references.get(reference, 0))

    def _steps(self, epochs: float | None, steps: int | None, batch_size: int) -> int:
        return total_steps(epochs, steps, steps_per_epoch(self.images.train, batch_size))

    def _add(self, kind: str, row: str, work: Work) -> None:
        if work.total:
            self.items.append(Item(kind, row, work))
