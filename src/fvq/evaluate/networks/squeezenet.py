"""SqueezeNet 1.0 (Iandola et al., 2016): features in five megabytes, for tests and where Inception's cannot be had."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from fvq.evaluate.images import check_images
from fvq.evaluate.networks.extractor import Outputs
from fvq.evaluate.networks.float32 import ieee_convolutions
from fvq.evaluate.networks.imagenet import normalize_imagenet
from fvq.evaluate.networks.pretrained import SQUEEZENET1_0_CAFFE_FILE, load_published
from fvq.runtime.files import sha256_file

_SCALE = "ImageNet's mean and deviation"
_CAFFE_SCALE = "blue first, less 104, 117 and 123"
_CAFFE_MEAN = (123.0, 117.0, 104.0)  # of red, green and blue


class SqueezeNet1_0(nn.Module):
    """torchvision's SqueezeNet 1.0; features are the mean over positions of what its last fire module gives.

    Images are resized to 224 pixels, whatever their shape. The authors' own weights (``caffe``) take them otherwise
    than torchvision's: blue first, in 0..255, less their mean.
    """

    name = "squeezenet1_0"
    feature_dimension = 512
    spatial_dimension = 0
    classes = 1000

    def __init__(self, network: torchvision.models.SqueezeNet, weights_sha256: str, *, caffe: bool = False) -> None:
        super().__init__()
        self.network = network
        self.weights_sha256 = weights_sha256
        self.resize = f"bilinear with antialiasing to 224 pixels, {_CAFFE_SCALE if caffe else _SCALE}"
        self._caffe = caffe

    @torch.inference_mode()
    def forward(self, images: Tensor, *, spatial: bool = False) -> Outputs:
        """Features (B, 512) and logits (B, 1000), both float32, of images uint8 (B, 3, H, W); nothing spatial."""
        check_images(images, f"extractor {self.name}")
        x = images.to(self.network.features[0].weight.device, torch.float32)
        x = nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
        if self._caffe:
            x = (x - torch.tensor(_CAFFE_MEAN, device=x.device).view(3, 1, 1)).flip(1)
        else:
            x = normalize_imagenet(x)
        with ieee_convolutions():
            maps = self.network.features(x)
            logits = self.network.classifier(maps).flatten(1)  # by a convolution too
        return Outputs(maps.mean(dim=(2, 3)), logits, None)


def load_squeezenet1_0(path: Path) -> SqueezeNet1_0:
    """The network with the weights at ``path``; their hash tells whose they are.

    Raises:
        UserError: the file holds something else.
    """
    with torch.device("meta"):
        network = torchvision.models.squeezenet1_0()
    load_published(network, path)
    sha256 = sha256_file(path)
    return SqueezeNet1_0(network, sha256, caffe=sha256 == SQUEEZENET1_0_CAFFE_FILE.sha256)
