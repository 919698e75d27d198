"""DINOv2 ViT-L/14 (Oquab et al., 2023): the features of FD-DINOv2 (Stein et al., 2023)."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fvq.evaluate.images import check_images
from fvq.evaluate.networks.extractor import Outputs
from fvq.evaluate.networks.float32 import ieee_convolutions
from fvq.evaluate.networks.imagenet import normalize_imagenet
from fvq.evaluate.networks.pretrained import load_published
from fvq.quantize.shortlist import ieee_products
from fvq.runtime.devices import available_cores
from fvq.runtime.files import sha256_file

_SIZE = 224  # pixels


class VisionTransformer(nn.Module):
    """A vision transformer of pre-normalised blocks with LayerScale, as facebookresearch/dinov2 has it, for inference.

    Its state dict has the published names. ``mask_token`` is of its training and unused here.

    Args:
        width: length of a token, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads.
        patch: side of a patch in pixels.
        grid: rows and columns of the learned positions.
    """

    def __init__(self, *, width: int, depth: int, heads: int, patch: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """The class token after the last norm, (B, width), of images (B, 3, H, W); sides are multiples of a patch."""
        patches = self.patch_embed["proj"](x_bchw)
        tokens = torch.cat([self.cls_token.expand(len(x_bchw), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self._positions(*patches.shape[2:])
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens[:, 0])
        return normed

    def _positions(self, rows: int, columns: int) -> Tensor:
        """(1, 1 + rows * columns, width): the learned ones, resampled where the grid is another."""
        if (rows, columns) == (self.grid, self.grid):
            return self.pos_embed
        learned = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        # The published code scales by a tenth of a patch more than the grids' ratio, and the features depend on it.
        scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        resampled = nn.functional.interpolate(learned, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1)


class DINOv2(nn.Module):
    """The class token of DINOv2 as the feature. There are no classes.

    Images are resized as dgm-eval does, whose figures the literature's are: by Pillow, one at a time, to 8 bit.
    """

    name = "dinov2-vit-l14"
    spatial_dimension = 0
    classes = 0
    resize = "bicubic with antialiasing to 224 pixels, rounded to 8 bit (Pillow), ImageNet's mean and deviation"

    def __init__(self, network: VisionTransformer, weights_sha256: str) -> None:
        super().__init__()
        self.network = network
        self.weights_sha256 = weights_sha256
        self.feature_dimension = network.norm.normalized_shape[0]

    @torch.inference_mode()
    def forward(self, images: Tensor, *, spatial: bool = False) -> Outputs:
        """Features float32 (B, width) of images uint8 (B, 3, H, W); nothing else."""
        check_images(images, f"extractor {self.name}")
        x = _resized(images).to(self.network.cls_token.device, torch.float32)
        with ieee_convolutions(), ieee_products(x.device):
            return Outputs(self.network(normalize_imagenet(x)), None, None)


def load_dinov2(path: Path) -> DINOv2:
    """DINOv2 ViT-L/14 with the published weights at ``path``; UserError where it holds something else."""
    with torch.device("meta"):
        network = VisionTransformer(width=1024, depth=24, heads=16, patch=14, grid=37)
    load_published(network, path)
    return DINOv2(network, sha256_file(path))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width)
        self.ls2 = _LayerScale(width)

    def forward(self, x_bnd: Tensor) -> Tensor:
        x_bnd = x_bnd + self.ls1(self.attn(self.norm1(x_bnd)))
        summed: Tensor = x_bnd + self.ls2(self.mlp(self.norm2(x_bnd)))
        return summed


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_bnd: Tensor) -> Tensor:
        query, key, value = self.qkv(x_bnd).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x_bnd: Tensor) -> Tensor:
        return x_bnd * self.gamma


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_bnd: Tensor) -> Tensor:
        outer: Tensor = self.fc2(nn.functional.gelu(self.fc1(x_bnd)))
        return outer


def _resized(images: Tensor) -> Tensor:
    """uint8 (B, 3, 224, 224) in main memory."""
    images_bhwc = images.permute(0, 2, 3, 1).cpu().contiguous().numpy()

    def resize(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow resizes without holding Python's lock
        resized = np.stack(list(pool.map(resize, images_bhwc)))
    return torch.from_numpy(resized).permute(0, 3, 1, 2)
