"""Samples of one generator at several scales of classifier-free guidance, and what they measure."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fvq.evaluate.evaluation import Options
from fvq.evaluate.figure_names import distance_name, score_name
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.image_sets import ImageSet
from fvq.evaluate.networks.extractor import Extractor
from fvq.evaluate.preparation import AS_STORED
from fvq.evaluate.protocols import PROTOCOLS
from fvq.evaluate.sides import Side
from fvq.generate.llamagen import LlamaGen
from fvq.generate.parts import sample_many
from fvq.generate.sampling import SamplingSettings
from fvq.runtime.errors import UserError
from fvq.runtime.files import read_json, write_json
from fvq.runtime.processes import wait_for_all
from fvq.runtime.training import History
from fvq.tokenizer.inference import decode_tokens
from fvq.tokenizer.tokenizer import Tokenizer


def draw_at_scales(
    model: LlamaGen,
    labels: Tensor,
    settings: SamplingSettings,
    scales: Sequence[float],
    *,
    seed: int,
    folder: Path,
    batch_size: int | None,
) -> dict[float, Tensor]:
    """Tokens int64 (N, h*w) for labels (N,) at each scale, in the place of ``settings.cfg_scale``.

    Image i draws from the same random stream at every scale, whichever the others are, so that the images differ by
    the scale alone. Processes and resuming as ``sample_many``; each scale has a folder of its own in ``folder``.

    Raises:
        UserError: a scale above 1 for a generator trained without class dropout; as ``sample_many``.
        Interrupted: a signal came, and what was drawn is kept.
    """
    if max(scales) > 1 and model.config.class_dropout == 0:
        raise UserError(
            "sweep_guidance.scales: this generator was trained with class_dropout 0 and cannot be guided; "
            "1.0 is the only scale that it has"
        )
    return {
        scale: sample_many(
            model,
            labels,
            settings.model_copy(update={"cfg_scale": scale}),
            seed=seed,
            part_folder=folder / f"scale-{scale}",
            batch_size=batch_size,
        )
        for scale in scales
    }


def measure_scales(
    tokens: Mapping[float, Tensor], tokenizer: Tokenizer, extractor: Extractor, reference: ImageSet, folder: Path
) -> History:
    """The figures of the protocol ``adm`` for the tokens (N, h*w) of each scale against the reference images.

    Each scale's figures are written to ``folder`` as they come, and those found there are not measured again; it
    belongs to these arguments, and all processes see it: they share the work, and the first one measures. Images are
    held a few hundred at a time.

    Returns:
        A row for each scale: ``cfg_scale``; ``samples``, how many; ``precision``, ``recall``; score and Fréchet
        distance under ``score_name`` and ``distance_name``. The distance is last: ``dvc plots`` shows the last column.

    Raises:
        UserError: too few images, or what the extractor says of them is not finite; a damaged file in ``folder``.
        Interrupted: as ``summarize``.
    """
    paths = {scale: folder / f"scale-{scale}.json" for scale in tokens}
    missing = [scale for scale, path in paths.items() if not path.is_file()]
    wait_for_all()  # the first process writes these files, and all must see the same
    for scale in missing:
        samples = _DecodedImages(f"samples at scale {scale:g}", tokens[scale], tokenizer)
        measured = evaluate_samples(
            Side(samples),
            Side(reference),
            extractor,
            PROTOCOLS["adm"],
            Options(allow_count=True),
            cache=folder / "features",
        )
        if measured is not None:
            columns = ("samples", "precision", "recall", score_name(extractor.name), distance_name(extractor.name))
            write_json(paths[scale], {"cfg_scale": scale} | {column: measured.values[column] for column in columns})
    wait_for_all()
    return [read_json(path) for path in paths.values()]


class _DecodedImages:
    """Images (an ``ImageSet``) that tokens (N, h*w) decode to as they are asked for."""

    preparation = AS_STORED
    names = None

    def __init__(self, name: str, tokens: Tensor, tokenizer: Tokenizer) -> None:
        self.name = name
        self.height = self.width = tokenizer.config.image_size
        self._tokens, self._tokenizer = tokens, tokenizer

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def digest(self) -> str:
        """Of the tokens: the folder of a sweep belongs to one tokenizer."""
        return hashlib.sha256(self._tokens.numpy().tobytes()).hexdigest()

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[Tensor]:
        """As ``ImageSet``."""
        for tokens in self._tokens[start:stop].split(batch_size):
            yield decode_tokens(self._tokenizer, tokens)
