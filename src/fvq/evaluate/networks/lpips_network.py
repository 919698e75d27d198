"""LPIPS v0.1 (Zhang et al., 2018) from local weights; nothing is downloaded."""

import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor

from fvq.evaluate.networks.float32 import ieee_convolutions
from fvq.runtime.errors import UserError

Trunk = Literal["alex", "vgg"]
_STEP_PIXELS = 2**19  # of a pass through the network: eight images of 256 pixels, for which VGG16 takes about 1 GB


def load_lpips_network(trunk: Trunk, path: Path) -> torch.nn.Module:
    """LPIPS on a trunk of torchvision's weights at ``path``: two batches (B, 3, H, W) in [-1, 1] to (B, 1, 1, 1).

    The linear heads come with the lpips package. The network's own weights take no gradient.

    Raises:
        UserError: the file holds no weights of that trunk.
    """
    import lpips  # takes seconds: it imports torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by names that it deprecates
        network: torch.nn.Module = lpips.LPIPS(net=trunk, version="0.1", pnet_rand=True, verbose=False)
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
        net = network.get_submodule("net")
        # lpips keeps torchvision's layer numbers: its slice2.3.weight is the file's features.3.weight.
        net.load_state_dict({name: published["features." + name.split(".", 1)[1]] for name in net.state_dict()})
    except (RuntimeError, KeyError, AttributeError, EOFError, UnpicklingError) as error:
        raise UserError(f"{path}: holds no weights of the LPIPS trunk {trunk} ({type(error).__name__})") from None
    return network.eval().requires_grad_(False)


def load_lpips(trunk: Trunk, path: Path, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS on ``device`` as a function of two batches uint8 (B, 3, H, W) to float64 (B,); ``path`` as above.

    Grey levels go in as level / 127.5 - 1. A few images are taken at a time, so that memory does not follow the batch.
    """
    network = load_lpips_network(trunk, path).to(device)

    @torch.inference_mode()
    def distance(original: Tensor, reconstruction: Tensor) -> Tensor:
        step = max(1, _STEP_PIXELS // (original.shape[2] * original.shape[3]))
        pairs = zip(original.split(step), reconstruction.split(step), strict=True)
        with ieee_convolutions():
            parts = [network(*(x_bchw.to(device) / 127.5 - 1 for x_bchw in pair)).flatten() for pair in pairs]
        return torch.cat(parts).double()

    return distance
