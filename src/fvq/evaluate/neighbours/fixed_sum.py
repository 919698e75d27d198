"""A sum that is the same bits everywhere."""

from torch import Tensor


def fixed_sum(terms_pd: Tensor) -> Tensor:
    """The sum (P,) of each row, by halves; overwrites the terms.

    The order in which torch's own sum adds up depends on the processor and on the shape.
    """
    width = terms_pd.shape[1]
    while width > 1:
        half = width // 2
        terms_pd[:, :half] += terms_pd[:, width - half : width]
        width -= half
    return terms_pd[:, 0].clone()
