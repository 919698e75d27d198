"""PatchGAN discriminator (Isola et al., 2017) as VQGAN uses it, and its hinge losses."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvq.quantize.processes import mean_over_processes, number_of_processes


class JointBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the batches of all processes, on any device, so that a step does not depend on how many
    share it. The released scripts normalize over each GPU's own images.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        if not self.training or number_of_processes() == 1:
            return super().forward(x)
        x = x.float()
        mean_c = mean_over_processes(x.mean((0, 2, 3)))
        centered_bchw = x - mean_c[:, None, None]
        variance_c = mean_over_processes(centered_bchw.square().mean((0, 2, 3)))
        with torch.no_grad():
            values = x.numel() // x.shape[1] * number_of_processes()
            self.running_mean.lerp_(mean_c, self.momentum)
            self.running_var.lerp_(variance_c * values / (values - 1), self.momentum)
            self.num_batches_tracked += 1
        scale_c = self.weight * torch.rsqrt(variance_c + self.eps)
        return centered_bchw * scale_c[:, None, None] + self.bias[:, None, None]


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
                JointBatchNorm(width),
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
