"""PatchGAN discriminator (Isola et al., 2017) as VQGAN uses it, and its hinge losses."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """Strided 4×4 convolutions; one logit per patch of the image, higher for real ones.

    Args:
        filters: channels of the first layer.
        layers: strided layers.
    """

    def __init__(self, filters: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.smallest_side = 3 * 2**layers  # pixels; the two last convolutions need 3 and 2 positions
        blocks: list[nn.Module] = [nn.Conv2d(3, filters, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        current = filters
        for layer in range(1, layers + 1):
            width = filters * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            blocks += [
                nn.Conv2d(current, width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
            current = width
        blocks.append(nn.Conv2d(current, 1, 4, padding=1))
        self.layers = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, 1, h, w)."""
        logits: Tensor = self.layers(images)
        return logits


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss: half the sum of what real patches lack of 1 and fake ones exceed -1 by."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """What the tokenizer minimises: minus the mean logit of its reconstructions."""
    return -torch.mean(fake_logits)
