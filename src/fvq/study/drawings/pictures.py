"""What a reconstruction got wrong, as pictures."""

import numpy as np

from fvq.study.archives import Images

ERROR_SCALE = 3
"""How many times the error pictures magnify: differences of 85 levels and more are full light."""


def error_images(original: Images, reconstruction: Images) -> Images:
    """The absolute error by pixel and channel, ``ERROR_SCALE`` times: black is none, uint8 as the images."""
    difference = np.abs(original.astype(np.int64) - reconstruction.astype(np.int64))
    return np.minimum(ERROR_SCALE * difference, 255).astype(np.uint8)
