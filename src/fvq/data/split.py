"""A seeded split by class."""

import numpy as np
from numpy.typing import NDArray


def split_by_class(
    labels: NDArray[np.int64], validation_fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the training and of the validation part, both in random order.

    Each class gives the nearest whole number to its share, but keeps a row in both parts where it has two or more; a
    class of one row goes to training.
    """
    train, validation = [], []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(rows) * validation_fraction), 1), len(rows) - 1)
        validation.append(rows[:count])
        train.append(rows[count:])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(validation))
