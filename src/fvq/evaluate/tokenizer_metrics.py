"""The figures of a tokenizer: the quality of its reconstructions and the use of its codebook, in one pass."""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from fvq.evaluate.evaluation import Evaluation, Options, Values, facts_of, uncertainty_of
from fvq.evaluate.figure_names import reconstruction_distance_name
from fvq.evaluate.frechet import frechet_distance
from fvq.evaluate.images import check_enough_images
from fvq.evaluate.networks.extractor import Extractor
from fvq.evaluate.pairs import Pairs
from fvq.evaluate.protocols import Protocol, check_count, check_resizing
from fvq.evaluate.reconstruction import Measure, measure_batch
from fvq.evaluate.segments import work_in_segments
from fvq.evaluate.summary import Collected, Merged, Pass, Summary, summarize
from fvq.evaluate.summary_file import cache_key
from fvq.quantize.usage import code_counts, usage_figures
from fvq.runtime.checkpoint import locked_in_turn
from fvq.runtime.errors import UserError
from fvq.runtime.processes import is_first
from fvq.runtime.progress import Advance


def evaluate_reconstructions(
    pairs: Pairs,
    extractor: Extractor,
    protocol: Protocol,
    measures: Mapping[str, Measure],
    options: Options,
    *,
    codebook_size: int | None = None,
    reference_words: str | None = None,
    absent: Mapping[str, str] | None = None,
    cache: Path | None = None,
) -> Evaluation | None:
    """rFID (or its kin on another network), the means of ``measures`` over images, and the use of the codebook.

    None in all processes but the first. The use of ``codebook_size`` codes is counted where the pairs come with tokens.
    ``absent`` says of measures that are wanted why they cannot be had, for the record. ``cache`` as for ``summarize``;
    it also keeps what an interrupted pass has done.

    Raises:
        UserError: options that only samples have, fewer than 2 images, images that do not fit the network or the
            protocol, or damaged.
        ValueError: indices outside the codebook; a cache, and a network whose weights are not saved.
        Interrupted: as ``summarize``.
    """
    _refuse_options_of_samples(options)
    check_resizing(extractor.resize, protocol)
    originals = pairs.originals
    count = len(originals)
    check_enough_images(count, originals.name)
    if not options.allow_count:
        check_count(count, protocol.pairs, protocol, extractor.name, originals.name)
    wanted = Pass(extractor, keep=options.uncertainty, batch_size=options.batch_size)
    reference = summarize(wanted, originals, cache=cache)
    folder = None if cache is None else cache / _key(wanted, pairs, measures, codebook_size)
    with nullcontext() if folder is None else locked_in_turn(folder):
        passed = _pass(wanted, pairs, measures, codebook_size, folder)
        if passed is None:
            return None
        summary, errors, counts = passed
        values: Values = {} if counts is None else dict(usage_figures(counts))
        values |= {name: error_n.mean().item() for name, error_n in errors.items()}
        name = reconstruction_distance_name(extractor.name, protocol.name)
        values[name] = frechet_distance(summary.features.gaussian, reference.features.gaussian)
        notes: list[str] = []
        if options.uncertainty:
            assert summary.kept is not None and reference.kept is not None
            more, notes = uncertainty_of(name, summary.kept, reference.kept, options.seed)
            values |= more
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    values |= facts_of(
        protocol,
        extractor,
        samples=pairs,
        count=count,
        reference=originals,
        reference_count=count,
        reference_words=reference_words,
        preparations=(pairs.preparation, originals.preparation.describe()),
        seeds={"halves": options.seed} if options.uncertainty else {},
    )
    values |= {f"protocol_{name}": why for name, why in (absent or {}).items()}
    return Evaluation(values, tuple(notes), errors)


def _refuse_options_of_samples(options: Options) -> None:
    for name in ("kernel_distance", "density_and_coverage", "distances"):
        if getattr(options, name) != getattr(Options, name):
            raise UserError(f"{name} is for samples, not for reconstructions")


def _pass(
    wanted: Pass, pairs: Pairs, measures: Mapping[str, Measure], codebook_size: int | None, folder: Path | None
) -> tuple[Summary, dict[str, Tensor], Tensor | None] | None:
    """Summary of the reconstructions, each image's errors, and how often each code occurs; to the first process."""

    def work(start: int, stop: int, advance: Advance) -> dict[str, Tensor]:
        collected = Collected(wanted, pairs.name, start, stop)
        errors: dict[str, list[Tensor]] = {name: [] for name in measures}
        counts = None if codebook_size is None else torch.zeros(codebook_size, dtype=torch.int64)
        for pair in pairs.batches(start, stop, wanted.batch_size):
            collected.add(pair.compared)
            for name, error_b in measure_batch(measures, pair.original, pair.reconstruction).items():
                errors[name].append(error_b)
            if counts is not None and pair.indices is not None:
                counts += code_counts(pair.indices, len(counts)).cpu()
            advance(len(pair.original))
        tensors = collected.tensors() | {f"errors.{name}": torch.cat(parts) for name, parts in errors.items()}
        return tensors if counts is None else tensors | {"code_counts": counts}

    count = len(pairs.originals)
    segments = work_in_segments(count, work, description=f"{wanted.extractor.name} of {pairs.name}", folder=folder)
    if not is_first():
        return None
    merged = Merged(wanted, count)
    errors: dict[str, list[Tensor]] = {name: [] for name in measures}
    counts = None if codebook_size is None else torch.zeros(codebook_size, dtype=torch.int64)
    for tensors in segments:
        merged.add(tensors)
        for name in measures:
            errors[name].append(tensors[f"errors.{name}"])
        if counts is not None:
            counts += tensors["code_counts"]
    return merged.summary(), {name: torch.cat(parts) for name, parts in errors.items()}, counts


def _key(wanted: Pass, pairs: Pairs, measures: Mapping[str, Measure], codebook_size: int | None) -> str:
    return "pairs-" + cache_key(
        wanted.extractor,
        {
            "reconstructions": pairs.digest,
            "originals": pairs.originals.digest,
            "preparations": [pairs.preparation, pairs.originals.preparation.describe()],
            "keep": wanted.keep,
            "measures": list(measures),
            "codebook_size": codebook_size,
        },
    )
