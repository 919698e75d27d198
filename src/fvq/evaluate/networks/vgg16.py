"""The VGG-16 features that torch-fidelity measures precision and recall on."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from fvq.evaluate.images import check_images
from fvq.evaluate.networks.extractor import Outputs
from fvq.evaluate.networks.float32 import ieee_convolutions
from fvq.evaluate.networks.imagenet import normalize_imagenet
from fvq.evaluate.networks.inception import resize_tensorflow
from fvq.evaluate.networks.pretrained import load_published
from fvq.quantize.shortlist import ieee_products
from fvq.runtime.files import sha256_file


class VGG16(nn.Module):
    """torchvision's VGG-16; features are its second hidden layer after the ReLU (torch-fidelity's ``fc2_relu``).

    Images are resized to 224 pixels as TensorFlow 1 does, whatever their shape, as torch-fidelity has it.
    """

    name = "vgg16"
    feature_dimension = 4096
    spatial_dimension = 0
    classes = 1000
    resize = "bilinear to 224 pixels as in TensorFlow 1, ImageNet's mean and deviation"

    def __init__(self, network: torchvision.models.VGG, weights_sha256: str) -> None:
        super().__init__()
        self.network = network
        self.weights_sha256 = weights_sha256

    @torch.inference_mode()
    def forward(self, images: Tensor, *, spatial: bool = False) -> Outputs:
        """Features (B, 4096) and logits (B, 1000), both float32, of images uint8 (B, 3, H, W); nothing spatial."""
        check_images(images, f"extractor {self.name}")
        network = self.network
        device = network.classifier[0].weight.device
        x = normalize_imagenet(resize_tensorflow(images.to(device), 224))
        with ieee_convolutions(), ieee_products(device):
            maps = network.avgpool(network.features(x))
            features = network.classifier[:5](maps.flatten(1))
            return Outputs(features, network.classifier[5:](features), None)


def load_vgg16(path: Path) -> VGG16:
    """The network with torchvision's weights at ``path``; UserError where it holds something else."""
    with torch.device("meta"):  # its random weights would take seconds
        network = torchvision.models.vgg16()
    load_published(network, path)
    return VGG16(network, sha256_file(path))
