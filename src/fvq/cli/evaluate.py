"""``fvq evaluate``."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fvq.cli.figures import print_figures
from fvq.cli.measuring import Crop, check_processes, prepared_protocol
from fvq.cli.output import check_output, provenance_path, tell_written
from fvq.evaluate.evaluation import Options
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.image_order import check_same_order
from fvq.evaluate.image_sets import open_for_pairs
from fvq.evaluate.networks.pretrained import in_folder, where_to_put
from fvq.evaluate.pairs import MadePairs, StoredPairs
from fvq.evaluate.protocol_networks import load_network, load_network_of_neighbours
from fvq.evaluate.protocols import Protocol, ProtocolName
from fvq.evaluate.reconstruction import LPIPS_TRUNKS, MEASURES, Measure, build_measures
from fvq.evaluate.record import check_record
from fvq.evaluate.sides import open_side
from fvq.evaluate.tokenizer_metrics import evaluate_reconstructions
from fvq.runtime.devices import best_device, use_cores
from fvq.runtime.errors import UserError, one_line_errors
from fvq.runtime.files import sha256_file, write_json
from fvq.runtime.processes import is_first, process_group
from fvq.runtime.provenance import Stopwatch, write_provenance
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.inference import reconstruct


def evaluate_images(
    samples_path: Path,
    reference_path: Path,
    out: Path | None,
    *,
    protocol_name: ProtocolName,
    extractor: str,
    weights: Path | None,
    size: int | None,
    crop: Crop | None,
    pairs: bool,
    measures: Sequence[str],
    options: Mapping[str, Any],
    cache: Path | None,
    force: bool,
) -> None:
    """Print the figures of samples, or of reconstructions; write them, with a provenance record, where asked.

    ``options`` are those of ``Options``; without ``measures`` all are taken but LPIPS on VGG16. Of several processes
    that ``torchrun`` started the first prints and writes.
    """
    check_processes(cache)
    with process_group(), one_line_errors():
        use_cores()
        stopwatch = Stopwatch()
        if out is not None and is_first():
            check_output(out, (".json",), force=force)
        protocol, device, wanted = prepared_protocol(protocol_name, size, crop), best_device(), Options(**options)
        notes: list[str] = []
        if pairs:
            opened, codebook_size, notes = _open_pairs(samples_path, reference_path, protocol, device)
            built, absent = _build_measures(measures, weights, device)
            notes += [
                f"no {name}: {LPIPS_TRUNKS[name][1].name} is missing; fvq doctor tells where it belongs"
                for name in absent
            ]
            network = load_network(extractor, protocol, weights=weights, device=device, parameter="--weights")
            evaluation = evaluate_reconstructions(
                opened, network, protocol, built, wanted, codebook_size=codebook_size, absent=absent, cache=cache
            )
        else:
            samples, reference = (open_side(path, protocol.preparation) for path in (samples_path, reference_path))
            network = load_network(extractor, protocol, weights=weights, device=device, parameter="--weights")
            near = load_network_of_neighbours(protocol, network, device, weights=weights)
            evaluation = evaluate_samples(
                samples, reference, network, protocol, wanted, neighbour_extractor=near, cache=cache
            )
        if evaluation is None:
            return
        record = check_record(evaluation.values, str(out or "the figures"))
        if out is not None:  # before anything is printed: standard output may be closed
            write_json(out, evaluation.values)
            write_provenance(
                provenance_path(out),
                stage="fvq evaluate",
                row=None,
                parameters={
                    "samples": str(samples_path),
                    "reference": str(reference_path),
                    "protocol": protocol_name,
                    "extractor": extractor,
                    "size": size,
                    "crop": crop,
                    "pairs": pairs,
                    "measures": list(measures),
                    **options,
                },
                inputs=[path for path in (samples_path, reference_path, Path(extractor)) if path.is_file()],
                outputs=[out],
                seed=wanted.seed,
                stopwatch=stopwatch,
            )
        print_figures(record)
        for note in (*evaluation.notes, *notes):
            print(note)
        if out is not None:
            tell_written(out, "these figures")
            tell_written(provenance_path(out), "how they came about")


def _build_measures(
    names: Sequence[str], weights: Path | None, device: torch.device
) -> tuple[dict[str, Measure], dict[str, str]]:
    """As ``build_measures``; of ``names``, which were asked for, none may be absent. Without any the usual ones.

    LPIPS finds its trunks in ``weights`` too, where that is a folder.
    """
    usual = [name for name in MEASURES if name != "lpips_vgg"]
    files = {name: in_folder(weights, [file]) for name, (_, file) in LPIPS_TRUNKS.items()}
    measures, absent = build_measures(list(dict.fromkeys(names)) or usual, weights=files, device=device)
    if names and absent:
        raise UserError(where_to_put(LPIPS_TRUNKS[min(absent)][1], f"--measure {min(absent)}"))
    return measures, absent


def _open_pairs(
    samples_path: Path, reference_path: Path, protocol: Protocol, device: torch.device
) -> tuple[StoredPairs | MadePairs, int | None, list[str]]:
    """Reconstructions with their originals; the codebook's size where a tokenizer makes them; what to say of them."""
    plain_originals, originals = open_for_pairs(reference_path, protocol.preparation)
    if samples_path.suffix.lower() != ".safetensors":
        reconstructions, compared = open_for_pairs(samples_path, protocol.preparation)
        notes = []
        if reconstructions.names is None or plain_originals.names is None:
            nameless = samples_path if reconstructions.names is None else reference_path
            notes.append(
                f"pairs are taken by their position: {nameless} does not name its images "
                "(a folder's come with 9 before 10)"
            )
        else:
            check_same_order(reconstructions.names, plain_originals.names, str(samples_path), str(reference_path))
        return StoredPairs(reconstructions, plain_originals, compared=compared, originals=originals), None, notes
    tokenizer = Tokenizer.load(samples_path).to(device)
    side = tokenizer.config.image_size
    if (plain_originals.width, plain_originals.height) != (side, side):
        advice = f"; --size {side} scales and crops them" if plain_originals is originals else ""
        raise UserError(
            f"{reference_path}: images have {plain_originals.width}x{plain_originals.height} pixels, and "
            f"{samples_path} is for {side}x{side}{advice}"
        )
    made = MadePairs(
        partial(reconstruct, tokenizer),
        plain_originals,
        name=str(samples_path),
        tokenizer_sha256=sha256_file(samples_path),
        originals=originals,
    )
    return made, tokenizer.config.codebook_size, []
