"""How networks trained on ImageNet with torchvision's recipe take their images."""

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""of red, green and blue in [0, 1]"""
IMAGENET_STANDARD_DEVIATION = (0.229, 0.224, 0.225)


def normalize_imagenet(x_bchw: Tensor) -> Tensor:
    """Float32 (B, 3, H, W) in 0..255 to the mean 0 and the standard deviation 1 of ImageNet's training images."""
    mean = torch.tensor(IMAGENET_MEAN, device=x_bchw.device).view(3, 1, 1)
    deviation = torch.tensor(IMAGENET_STANDARD_DEVIATION, device=x_bchw.device).view(3, 1, 1)
    return (x_bchw / 255 - mean) / deviation
