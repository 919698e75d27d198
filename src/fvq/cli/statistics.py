"""``fvq statistics``."""

from pathlib import Path

import fvq
from fvq.cli.measuring import Crop, check_processes, prepared_protocol
from fvq.cli.output import check_output, provenance_path, tell_written
from fvq.evaluate.image_sets import open_image_set
from fvq.evaluate.images import check_enough_images
from fvq.evaluate.protocol_networks import load_network
from fvq.evaluate.protocols import ProtocolName
from fvq.evaluate.statistics_file import StoredStatistics, write_statistics
from fvq.evaluate.summary import Pass, summarize
from fvq.runtime.devices import best_device, use_cores
from fvq.runtime.errors import one_line_errors
from fvq.runtime.processes import is_first, process_group
from fvq.runtime.provenance import Stopwatch, write_provenance


def store_statistics(
    images_path: Path,
    out: Path,
    *,
    protocol_name: ProtocolName,
    extractor: str,
    weights: Path | None,
    size: int | None,
    crop: Crop | None,
    batch_size: int,
    cache: Path | None,
    force: bool,
) -> None:
    """Write mean and covariance of the images' features, with their provenance record; print what the file holds.

    Of several processes that ``torchrun`` started the first prints and writes.
    """
    check_processes(cache)
    with process_group(), one_line_errors():
        use_cores()
        stopwatch = Stopwatch()
        if is_first():
            check_output(out, (".npz",), force=force)
        protocol = prepared_protocol(protocol_name, size, crop)
        images = open_image_set(images_path, protocol.preparation)
        check_enough_images(len(images), images.name)
        network = load_network(extractor, protocol, weights=weights, device=best_device(), parameter="--weights")
        spatial = protocol.spatial and network.spatial_dimension > 0
        summary = summarize(Pass(network, spatial=spatial, batch_size=batch_size), images, cache=cache)
        if not is_first():
            return
        facts = {
            "extractor": network.name,
            "extractor_sha256": network.weights_sha256,
            "resize": network.resize,
            "preparation": images.preparation.describe(),
            "images": images.name,
            "digest": images.digest,
            "fvq": fvq.__version__,
        }
        of_spatial = None if summary.spatial is None else summary.spatial.gaussian
        write_statistics(out, StoredStatistics(str(out), "", summary.features.gaussian, of_spatial, facts))
        also = "" if of_spatial is None else f" and {network.spatial_dimension:,} spatial ones"
        tell_written(out, f"{len(images):,} images, {network.feature_dimension:,} features{also} of {network.name}")
        write_provenance(
            provenance_path(out),
            stage="fvq statistics",
            row=None,
            parameters={
                "images": str(images_path),
                "protocol": protocol_name,
                "extractor": extractor,
                "size": size,
                "crop": crop,
                "batch_size": batch_size,
            },
            inputs=[path for path in (images_path, Path(extractor)) if path.is_file()],
            outputs=[out],
            seed=0,
            stopwatch=stopwatch,
        )
        tell_written(provenance_path(out), "how they came about")
