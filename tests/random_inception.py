"""Inception's architecture with random weights: what other libraries make of it can be told without the published."""

from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from skimage import data
from torch import nn

PHOTOS = (data.astronaut, data.chelsea, data.coffee, data.rocket, data.hubble_deep_field, data.immunohistochemistry)


def write_weights(path: Path) -> Path:
    """A file like the published one. Batch normalisation has random statistics, so that folding it in is no copy."""
    with torch.device("meta"):
        network = torchvision.models.inception_v3(weights=None, aux_logits=False, num_classes=1008, init_weights=False)
    network, generator = network.to_empty(device="cpu"), torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:  # keeps the size of the activations
            bound = (6 / tensor[0].numel()) ** 0.5 * (4 if name == "fc.weight" else 1)  # classes are told apart
            nn.init.uniform_(tensor, -bound, bound, generator=generator)
        elif tensor.is_floating_point():
            middle = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
            nn.init.uniform_(tensor, middle - 0.3, middle + 0.3, generator=generator)
        else:
            tensor.zero_()
    torch.save(network.state_dict(), path)
    return path


def photo_crops(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Pieces of photographs at random places, uint8 (count, 3, height, width); larger ones are scaled up to."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        photo = Image.fromarray(PHOTOS[number % len(PHOTOS)]())
        left, top = random.integers(0, photo.width // 2), random.integers(0, photo.height // 2)
        box = (left, top, left + photo.width // 3, top + photo.height // 3)
        images.append(np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC, box)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
