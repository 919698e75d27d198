"""The Inception network of 2015-12-05: the features that FID is defined on."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from fvq.evaluate.figure_names import INCEPTION_2015
from fvq.evaluate.networks.extractor import INCEPTION_RESIZES, Outputs, Resize
from fvq.evaluate.networks.float32 import ieee_convolutions
from fvq.quantize.shortlist import ieee_products
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file

_SIDE = 299
_SPATIAL_CHANNELS = 7  # of 17x17 places: the 2,023 numbers of ADM's sFID
# torch's own, for its compiler: a convolution with what follows it, its weight laid out beforehand.
_pack: Any = getattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", None)
_convolve: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


class Inception2015(nn.Module):
    """torch-fidelity's port, made fast: batch normalisation folded into the weights, channels last, ReLU fused.

    ``features`` are the ADM evaluator's ``pool_3``. ``logits`` are of its 1,008 outputs without the bias, as ADM and
    torch-fidelity score them. ``spatial`` are the first 7 channels of its ``mixed_6/conv``, place by place
    (https://github.com/openai/guided-diffusion, evaluations/evaluator.py). On a GPU float32 without TF32.

    ``resize``: ``tensorflow`` is the resizing of the published graph, of ADM and torch-fidelity (no half-pixel
    centres); ``pytorch`` that of pytorch-fid.
    """

    name = INCEPTION_2015
    feature_dimension = 2048
    spatial_dimension = 17 * 17 * _SPATIAL_CHANNELS
    classes = 1008

    def __init__(self, path: Path, resize: Resize = "tensorflow") -> None:
        super().__init__()
        self.weights_sha256 = sha256_file(path)
        self.resize = INCEPTION_RESIZES[resize]
        self._as_tensorflow = resize == "tensorflow"
        try:
            network = FeatureExtractorInceptionV3(
                INCEPTION_2015, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except (RuntimeError, UnpicklingError, AttributeError, EOFError, TypeError) as error:
            raise UserError(f"{path}: holds no weights of this network ({type(error).__name__})") from None
        for name, module in list(network.named_modules()):
            if isinstance(module, BasicConv2d):
                network.set_submodule(name, _FusedConvolution(module))
        self.stem = nn.Sequential(
            *(network.get_submodule(name) for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1")),
            *(network.get_submodule(name) for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2")),
        )
        self.early = nn.Sequential(*(network.get_submodule(f"Mixed_{name}") for name in ("5b", "5c", "5d", "6a")))
        self.middle = nn.Sequential(*(network.get_submodule(f"Mixed_{name}") for name in ("6b", "6c")))
        self.spatial_block = network.get_submodule("Mixed_6d")
        self.late = nn.Sequential(*(network.get_submodule(f"Mixed_{name}") for name in ("6e", "7a", "7b", "7c")))
        self.register_buffer("class_weight_cd", network.fc.weight.detach())
        self.eval()

    @torch.inference_mode()
    def forward(self, images: Tensor, *, spatial: bool = False) -> Outputs:
        """Outputs for images uint8 (B, 3, H, W) of any size."""
        class_weight_cd = self.get_buffer("class_weight_cd")
        images_bchw = images.to(class_weight_cd.device)
        scaled = _as_tensorflow(images_bchw) if self._as_tensorflow else _as_pytorch(images_bchw)
        with ieee_convolutions(benchmark=True), ieee_products(class_weight_cd.device):
            x = self.middle(self.early(self.stem(scaled)))
            spatial_b = None
            if spatial:
                # mixed_6/conv; computed once more, which costs less than a hundredth.
                map_bchw = self.spatial_block.get_submodule("branch1x1")(x)[:, :_SPATIAL_CHANNELS]
                spatial_b = map_bchw.permute(0, 2, 3, 1).flatten(1)
            features_bd = self.late(self.spatial_block(x)).mean(dim=(2, 3))
            return Outputs(features_bd, features_bd @ class_weight_cd.T, spatial_b)


class _FusedConvolution(nn.Module):
    """Convolution, batch normalisation and ReLU as one convolution with a bias, its weight folded in float64."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        convolution, norm = block.conv, block.bn
        scale_c = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = (convolution.weight.double() * scale_c[:, None, None, None]).float()
        bias_c = (norm.bias.double() - norm.running_mean.double() * scale_c).float()
        self.register_buffer("weight", weight.detach().to(memory_format=torch.channels_last))
        self.register_buffer("bias", bias_c.detach())
        # padding, stride, dilation and groups
        self._place = (list(convolution.padding), list(convolution.stride), [1, 1], 1)
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        if x.device.type != "cpu" or None in (_pack, _convolve) or not torch.backends.mkldnn.is_available():
            padding, stride, dilation, groups = self._place
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu_()
        if self._packed is None:
            self._packed = _pack(weight.to_mkldnn(), *self._place, list(x.shape))
        return _convolve(x, self._packed, bias, *self._place, "relu", [], "")


def resize_tensorflow(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) of any dtype as float32 (B, 3, side, side), channels last, as TensorFlow 1 resizes.

    Bilinear without half-pixel centres: the place i of the result is i * H / side of the image, from the top left
    corner (tf.image.resize_bilinear of 1.x; align_corners false). The same bits as torch-fidelity's port of it.
    """
    x_bhwc = images.permute(0, 2, 3, 1).contiguous().float()
    return _interpolate(_interpolate(x_bhwc, 2, side), 1, side).permute(0, 3, 1, 2)


def _interpolate(x: Tensor, axis: int, side: int) -> Tensor:
    length = x.shape[axis]
    place = torch.arange(side, dtype=torch.float32, device=x.device) * torch.tensor(length / side, dtype=torch.float32)
    low = place.long()
    weight = (place - low).view([-1 if dimension == axis else 1 for dimension in range(x.ndim)])
    below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp_max(length - 1))
    return above.sub_(below).mul_(weight).add_(below)


def _as_tensorflow(images: Tensor) -> Tensor:
    return resize_tensorflow(images, _SIDE).sub_(128).div_(128)


def _as_pytorch(images: Tensor) -> Tensor:
    x = F.interpolate(images.float().div_(255), size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return x.mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
