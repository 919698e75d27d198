"""The figures of a generator: its samples against reference images or their statistics."""

from pathlib import Path

from torch import Tensor

from fvq.evaluate.evaluation import Evaluation, Options, Values, facts_of, uncertainty_of
from fvq.evaluate.figure_names import INCEPTION_2015, density_names, distance_name, kid_name, score_name, share_names
from fvq.evaluate.frechet import frechet_distance
from fvq.evaluate.kid import SEED as SUBSET_SEED
from fvq.evaluate.kid import check_subset_size, kernel_distance
from fvq.evaluate.neighbours import DENSITY_NEIGHBOURS, neighbour_figures
from fvq.evaluate.neighbours.figures import check_enough_neighbours
from fvq.evaluate.networks.extractor import Extractor
from fvq.evaluate.networks.pretrained import PUBLISHED, missing_file
from fvq.evaluate.protocols import Protocol, check_count, check_resizing
from fvq.evaluate.record import NONE
from fvq.evaluate.sides import Side, check_sides, check_statistics
from fvq.evaluate.summary import Pass, Summary, summarize
from fvq.runtime.errors import UserError
from fvq.runtime.processes import is_first


def evaluate_samples(
    samples: Side,
    reference: Side,
    extractor: Extractor,
    protocol: Protocol,
    options: Options,
    *,
    neighbour_extractor: Extractor | None = None,
    reference_words: str | None = None,
    cache: Path | None = None,
) -> Evaluation | None:
    """The figures of ``protocol`` for ``samples`` against ``reference``; None in all processes but the first.

    ``neighbour_extractor`` is the network of precision and recall where the protocol names another than that of the
    figures; without it these are left out. ``reference_words`` says which images the reference is; None takes its
    path. ``cache`` as for ``summarize``.

    Raises:
        UserError: sides that do not fit each other, the network or the protocol; damaged images; too few of them.
        Interrupted: as ``summarize``.
    """
    if not protocol.of_samples:
        raise UserError(f"the protocol {protocol.name} measures reconstructions, and samples have no originals")
    check_resizing(extractor.resize, protocol)
    check_sides(samples, reference)
    for side in (samples, reference):
        check_statistics(side, extractor)
    if not options.allow_count:
        _check_count(samples, reference, protocol, extractor)
    near = _network_of_neighbours(samples, reference, extractor, protocol, neighbour_extractor)
    _check_options(samples, reference, protocol, near, options)

    keep = near is extractor or options.kernel_distance
    spatial = protocol.spatial and extractor.spatial_dimension > 0 and all(map(_may_have_spatial, (samples, reference)))
    of_samples = of_reference = near_samples = near_reference = None
    if samples.images is not None:
        wanted = Pass(
            extractor,
            spatial=spatial and samples.statistics is None,
            groups=protocol.score_groups(len(samples.images)) if extractor.classes else None,
            keep=keep or options.uncertainty,
            batch_size=options.batch_size,
        )
        of_samples = near_samples = summarize(wanted, samples.images, cache=cache)
    if reference.images is not None and (keep or reference.statistics is None):
        wanted = Pass(
            extractor, spatial=spatial and reference.statistics is None, keep=keep, batch_size=options.batch_size
        )
        of_reference = near_reference = summarize(wanted, reference.images, cache=cache)
    if near is not None and near is not extractor and samples.images is not None and reference.images is not None:
        wanted = Pass(near, keep=True, batch_size=options.batch_size)
        near_samples, near_reference = (
            summarize(wanted, images, cache=cache) for images in (samples.images, reference.images)
        )
    if not is_first():
        return None

    values, notes = _distances(samples, of_samples, reference, of_reference, extractor, options)
    scored = of_samples is not None and of_samples.scores is not None
    if scored:
        values |= _score(of_samples, extractor)
    if near is not None:
        values |= _neighbours(_kept(near_samples), _kept(near_reference), protocol, options, extractor.name, near.name)
    if options.kernel_distance:
        name = kid_name(extractor.name)
        values[name], values[f"{name}_std"] = kernel_distance(_kept(of_samples), _kept(of_reference))
    drawn = {
        "shuffle": protocol.score_seed if scored else None,
        "subsets": SUBSET_SEED if options.kernel_distance else None,
        "halves": options.seed if options.uncertainty else None,
    }
    facts = facts_of(
        protocol,
        extractor,
        samples=samples,
        count=samples.count,
        reference=reference,
        reference_count=reference.count,
        reference_words=reference_words,
        preparations=(samples.preparation, reference.preparation),
        score=protocol.score_in_words(extractor.name) if scored else NONE,
        seeds={name: seed for name, seed in drawn.items() if seed is not None},
    )
    if samples.statistics is not None and samples.images is not None:
        facts["protocol_images_beside_statistics"] = str(len(samples.images))
        facts["samples_statistics_sha256"] = samples.statistics.digest
    if reference.statistics is not None and reference.images is not None:
        facts["protocol_reference_statistics_sha256"] = reference.statistics.digest
    if near is not None and reference.images is not None:
        facts |= {
            "protocol_neighbours": str(protocol.neighbours),
            "protocol_density_neighbours": str(DENSITY_NEIGHBOURS) if options.density_and_coverage else NONE,
            "protocol_neighbours_on": near.name,
            "protocol_neighbours_reference_images": str(len(reference.images)),
            "protocol_distances": options.distances,
        }
    if near is not None and near is not extractor:
        facts["protocol_neighbours_sha256"] = near.weights_sha256
    return Evaluation(values | facts, (*notes, *_left_out(samples, reference, extractor, protocol, near, spatial)))


def _check_count(samples: Side, reference: Side, protocol: Protocol, extractor: Extractor) -> None:
    counts = [samples.count] if samples.images is None else [samples.count, len(samples.images)]
    try:
        for count in counts:
            if count is not None:
                check_count(count, protocol.samples, protocol, extractor.name, samples.name)
    except UserError as error:
        if reference.count is None or reference.count not in protocol.samples:
            raise
        raise UserError(
            f"{error} ({reference.name} has {reference.count:,}: are SAMPLES and --reference swapped?)"
        ) from None


def _check_options(
    samples: Side, reference: Side, protocol: Protocol, near: Extractor | None, options: Options
) -> None:
    bare = next((side.name for side in (samples, reference) if side.images is None), None)
    if options.kernel_distance and bare is not None:
        raise UserError(f"{bare}: holds statistics alone, and the kernel distance needs images")
    if options.density_and_coverage and near is None:
        raise UserError(f"density and coverage cannot be measured: {_why_no_neighbours(protocol, bare)}")
    if options.distances == "float16" and near is None:
        raise UserError(f"precision and recall in float16 cannot be measured: {_why_no_neighbours(protocol, bare)}")
    if options.uncertainty and samples.statistics is not None:
        raise UserError(
            f"{samples.name}: holds statistics, which distances are of, and the uncertainty is measured on images"
        )
    for images in (samples.images, reference.images):
        if images is not None and options.kernel_distance:
            check_subset_size(len(images), images.name)
        if images is not None and near is not None and protocol.neighbours is not None:
            check_enough_neighbours(len(images), images.name, "precision and recall", protocol.neighbours)
    if options.density_and_coverage and reference.images is not None:
        check_enough_neighbours(
            len(reference.images), reference.images.name, "density and coverage", DENSITY_NEIGHBOURS
        )


def _network_of_neighbours(
    samples: Side, reference: Side, extractor: Extractor, protocol: Protocol, other: Extractor | None
) -> Extractor | None:
    """The network of precision and recall; None where there are no such figures."""
    if protocol.neighbours is None or samples.images is None or reference.images is None:
        return None
    elsewhere = protocol.neighbours_on is not None and extractor.name == INCEPTION_2015
    return other if elsewhere else extractor


def _why_no_neighbours(protocol: Protocol, bare: str | None) -> str:
    if protocol.neighbours is None:
        return f"the protocol {protocol.name} has no neighbours"
    if bare is not None or protocol.neighbours_on is None:
        return f"{bare} holds statistics alone"
    return f"the network {protocol.neighbours_on} is not there: {missing_file(PUBLISHED[protocol.neighbours_on][0])}"


def _may_have_spatial(side: Side) -> bool:
    return side.statistics is None or side.statistics.spatial is not None


def _distances(
    samples: Side,
    of_samples: Summary | None,
    reference: Side,
    of_reference: Summary | None,
    extractor: Extractor,
    options: Options,
) -> tuple[Values, list[str]]:
    first, second = samples.features(of_samples), reference.features(of_reference)
    name = distance_name(extractor.name)
    values: Values = {name: frechet_distance(first, second)}
    notes: list[str] = []
    if options.uncertainty:
        more, notes = uncertainty_of(name, _kept(of_samples), second, options.seed)
        values |= more
    first_spatial, second_spatial = samples.spatial(of_samples), reference.spatial(of_reference)
    if first_spatial is not None and second_spatial is not None:
        values[f"s{name}"] = frechet_distance(first_spatial, second_spatial)
    return values, notes


def _score(summary: Summary | None, extractor: Extractor) -> Values:
    assert summary is not None and summary.scores is not None
    name = score_name(extractor.name)
    mean, deviation = summary.scores.score()
    return {name: mean, f"{name}_std": deviation}


def _neighbours(
    samples: Tensor, reference: Tensor, protocol: Protocol, options: Options, extractor: str, network: str
) -> Values:
    assert protocol.neighbours is not None
    figures = neighbour_figures(
        samples,
        reference,
        neighbours=protocol.neighbours,
        density_neighbours=DENSITY_NEIGHBOURS if options.density_and_coverage else None,
        distances=options.distances,
    )
    precision, recall = share_names(extractor, network, options.distances)
    density, coverage = density_names(extractor, network)
    values: Values = {precision: figures.precision, recall: figures.recall}
    if figures.density is not None and figures.coverage is not None:
        values |= {density: figures.density, coverage: figures.coverage}
    return values


def _kept(summary: Summary | None) -> Tensor:
    assert summary is not None and summary.kept is not None
    return summary.kept


def _left_out(
    samples: Side, reference: Side, extractor: Extractor, protocol: Protocol, near: Extractor | None, spatial: bool
) -> list[str]:
    """What a protocol has and these inputs cannot give, in words."""
    notes = []
    bare = [side.name for side in (samples, reference) if side.images is None]
    if samples.images is None and protocol.score is not None:
        notes.append(f"no Inception Score: {samples.name} holds statistics alone")
    if protocol.neighbours is not None and near is None:
        notes.append(f"no precision and recall: {_why_no_neighbours(protocol, next(iter(bare), None))}")
    for side, other in ((samples, reference), (reference, samples)):
        known = side.statistics is not None and "preparation" in side.statistics.protocol
        if known and side.images is None and side.preparation != other.preparation:
            notes.append(
                f"{side.name}: statistics of images {side.preparation}, and {other.name} has images {other.preparation}"
            )
    if protocol.spatial and extractor.spatial_dimension and not spatial:
        lacking = next(side.name for side in (samples, reference) if not _may_have_spatial(side))
        notes.append(f"no sFID: {lacking} holds no spatial statistics (mu_s, sigma_s)")
    return notes
