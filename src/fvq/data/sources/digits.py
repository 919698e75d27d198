"""scikit-learn's handwritten digits: 1,797 grey images of 8×8, the test part of Alpaydin and Kaynak's set (UCI)."""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from fvq.data.records import ImageRecord, ImageSource
from fvq.data.settings import Digits
from fvq.data.split import split_by_class
from fvq.runtime.seeds import seed_from

INK_MAX = 16  # the data set counts ink from 0 to 16


def open_digits(settings: Digits, seed: int) -> ImageSource:
    """The digits as RGB images of ``image_size``, enlarged bicubically; the stratified split follows from ``seed``."""
    from sklearn.datasets import load_digits  # here, for it takes seconds to import

    digits = load_digits()
    grey_nhw = np.rint(digits.images * (255 / INK_MAX)).astype(np.uint8)
    labels = digits.target.astype(np.int64)

    def records(rows: Iterable[int]) -> Iterator[ImageRecord]:
        size = (settings.image_size, settings.image_size)
        for row in rows:
            image = Image.fromarray(grey_nhw[row]).resize(size, Image.Resampling.BICUBIC)
            yield ImageRecord(image.convert("RGB"), int(labels[row]), f"digits/{row}")

    rng = np.random.default_rng(seed_from(seed, "digits split"))
    train, validation = split_by_class(labels, settings.validation_fraction, rng)
    return ImageSource(tuple(str(name) for name in digits.target_names), records(train), records(validation))
