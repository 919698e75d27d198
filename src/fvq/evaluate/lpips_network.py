"""LPIPS v0.1 (Zhang et al., 2018) from local weights; nothing is downloaded."""

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch

from fvq.runtime.errors import UserError


def load_lpips_network(trunk: Literal["alex", "vgg"], path: Path) -> torch.nn.Module:
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
