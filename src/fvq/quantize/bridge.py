"""VQBridge: the projector that maps the whole codebook at once (paper §3.2, Eq. 8 to 11)."""

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from fvq.quantize.bridge_blocks import DiTBlock, ViTBlock, grid_positions, modulate, norm, sequence_positions
from fvq.quantize.checks import check_positive, nearest_sizes

Layout = Literal["grid", "sequence"]
Block = Literal["vit", "dit"]


def default_patch(codebook_size: int) -> int:
    """Codes per bridge token: a power of 4 that leaves about 1,024 tokens, at least 4 codes and at most 64.

    This gives the released configurations, 16 codes at 16,384 and 64 at 65,536 and 262,144 (whose costs the paper's
    Table 10 confirms), and Figure 6's best value of 4 at 4,096.
    """
    power = round(math.log(max(codebook_size / 1024, 1), 4))
    return max(4, min(int(4**power), 64))


class VQBridge(nn.Module):
    """Compress the codes of a group into one token, let the tokens attend to each other, expand them again.

    Args:
        codebook_size: number of codes K.
        code_dim: dimension d of a code.
        width: token width d'; by default d, which the paper's Figure 6 found best.
        depth: number of transformer blocks N.
        heads: attention heads; they divide ``width``.
        patch: codes per token p; by default ``default_patch(codebook_size)``.
        layout: which codes form a group. ``grid`` tiles the √K×√K index grid with √p×√p squares, as the released code
            does; ``sequence`` takes consecutive codes, as Eq. 8 says, and works for any multiple of p.
        mlp_ratio: hidden width of a block's feed-forward part over ``width``.
        block: ``vit``, the plain blocks that the paper describes (the released ``qbridge_ViT.py``); or ``dit``, which
            the released training scripts use (``qbridge.py``): fixed sin-cos positions, and adaLN-Zero given a label.
            The positions are those of the token grid (``width`` divisible by 4), or with the layout ``sequence`` of
            the token sequence (``width`` even).
        classes: labels of ``dit``, beside the unconditional one; the released scripts train without any.

    The last layer starts at zero, as in the released code: every mapped code begins at the origin.

    Raises:
        ValueError: the sizes do not fit together; the message names sizes that do.
    """

    positions_td: Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        width: int | None = None,
        depth: int = 2,
        heads: int = 4,
        patch: int | None = None,
        layout: Layout = "grid",
        mlp_ratio: float = 2.0,
        block: Block = "vit",
        classes: int = 0,
    ) -> None:
        super().__init__()
        width = code_dim if width is None else width
        patch = default_patch(codebook_size) if patch is None else patch
        check_positive(code_dim=code_dim, depth=depth)
        check_bridge_sizes(codebook_size, width=width, heads=heads, patch=patch, layout=layout, block=block)
        if int(width * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {mlp_ratio} leaves no channel of a width of {width}")
        if classes < 0 or (classes and block == "vit"):
            raise ValueError(
                f"classes must be {'0 with the block vit' if block == 'vit' else 'at least 0'}, not {classes}"
            )
        self.codebook_size, self.code_dim, self.patch, self.classes = codebook_size, code_dim, patch, classes
        self.layout: Layout = layout
        self.block: Block = block
        self.compress = nn.Linear(patch * code_dim, width)
        block_type = ViTBlock if block == "vit" else DiTBlock
        self.blocks = nn.ModuleList(block_type(width, heads, mlp_ratio) for _ in range(depth))
        self.expand = nn.Linear(width, patch * code_dim)
        if block == "dit":
            self.labels = nn.Embedding(classes + 1, width)
            self.modulation = nn.Linear(width, 2 * width)
            tokens = codebook_size // patch
            positions_td = (
                grid_positions(math.isqrt(tokens), width) if layout == "grid" else sequence_positions(tokens, width)
            )
            self.register_buffer("positions_td", positions_td, persistent=False)
        self._initialize()

    def forward(self, codebook_kd: Tensor, label: int | None = None) -> Tensor:
        """Map the codebook (K, d) to (K, d).

        Args:
            codebook_kd: floating point, of the type of the weights.
            label: for the block ``dit``: 0 to ``classes`` - 1, or ``classes``, the default, for the unconditional codes
                (which the released conversion keeps; dropping labels in training is the caller's).

        Raises:
            ValueError: the codebook has another shape, or there is no such label.
        """
        if codebook_kd.shape != (self.codebook_size, self.code_dim):
            raise ValueError(
                f"the codebook must be ({self.codebook_size}, {self.code_dim}), not {tuple(codebook_kd.shape)}"
            )
        tokens_td = self.compress(self._patchify(codebook_kd))
        if self.block == "vit":
            if label is not None:
                raise ValueError(f"the block vit takes no label, but was given {label}")
            for block in self.blocks:
                tokens_td = block(tokens_td)
            return self._unpatchify(self.expand(norm(tokens_td)))
        condition_1d = self._condition(self.classes if label is None else label)
        tokens_td = tokens_td + self.positions_td
        for block in self.blocks:
            tokens_td = block(tokens_td, condition_1d)
        shift_1d, scale_1d = self.modulation(condition_1d).chunk(2, dim=1)
        return self._unpatchify(self.expand(modulate(norm(tokens_td), shift_1d, scale_1d)))

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.expand.weight)
        if self.block == "dit":
            nn.init.normal_(self.labels.weight, std=0.02)
            for part in (*self.blocks, self):
                nn.init.zeros_(part.modulation.weight)

    def _condition(self, label: int) -> Tensor:
        if not 0 <= label <= self.classes:
            raise ValueError(f"label must lie in 0 to {self.classes}, not {label}")
        return F.silu(self.labels.weight[label : label + 1])

    def _patchify(self, codebook_kd: Tensor) -> Tensor:
        """(K, d) to (K / p, p·d)."""
        if self.layout == "sequence":
            return codebook_kd.reshape(-1, self.patch * self.code_dim)
        cells, side = math.isqrt(self.codebook_size // self.patch), math.isqrt(self.patch)
        grid = codebook_kd.reshape(cells, side, cells, side, self.code_dim).transpose(1, 2)
        return grid.reshape(-1, self.patch * self.code_dim)

    def _unpatchify(self, tokens_td: Tensor) -> Tensor:
        """(K / p, p·d) to (K, d)."""
        if self.layout == "sequence":
            return tokens_td.reshape(-1, self.code_dim)
        cells, side = math.isqrt(self.codebook_size // self.patch), math.isqrt(self.patch)
        grid = tokens_td.reshape(cells, cells, side, side, self.code_dim).transpose(1, 2)
        return grid.reshape(-1, self.code_dim)


def check_bridge_sizes(
    codebook_size: int, *, width: int, heads: int, patch: int, layout: Layout, block: Block = "vit"
) -> None:
    """Raise ValueError where a bridge of these sizes cannot be built; the message names the nearest sizes that work."""
    check_positive(codebook_size=codebook_size, width=width, heads=heads, patch=patch)
    if layout not in ("grid", "sequence"):
        raise ValueError(f"layout must be 'grid' or 'sequence', not {layout!r}")
    if block not in ("vit", "dit"):
        raise ValueError(f"block must be 'vit' or 'dit', not {block!r}")
    _check_width(width, heads, layout, block)
    if layout == "sequence":
        _check_sequence(codebook_size, patch)
    else:
        _check_grid(codebook_size, patch)


def _check_width(width: int, heads: int, layout: Layout, block: Block) -> None:
    turns = 1 if block == "vit" else 4 if layout == "grid" else 2
    step = math.lcm(heads, turns)
    if width % step:
        reason = f"{heads} heads" if width % heads else f"{turns}, as its {layout} positions need"
        below = width // step * step
        raise ValueError(
            f"width {width} is not divisible by {reason}; {nearest_sizes(below, below + step)} "
            "(the width is the code dimension unless given)"
        )


def _check_sequence(codebook_size: int, patch: int) -> None:
    if codebook_size % patch:
        below = codebook_size // patch * patch
        raise ValueError(
            f"codebook_size {codebook_size} is not divisible by the bridge's patch of {patch} codes; "
            f"{nearest_sizes(below, below + patch)}"
        )


def _check_grid(codebook_size: int, patch: int) -> None:
    side = math.isqrt(patch)
    if side * side != patch:
        raise ValueError(f"the grid layout needs a square patch (1, 4, 16, 64, …), not {patch}")
    cells = math.isqrt(codebook_size) // side
    if (cells * side) ** 2 != codebook_size:
        raise ValueError(
            f"codebook_size {codebook_size} is not divisible by the bridge's patch of {patch} codes as a square grid; "
            f"{nearest_sizes((cells * side) ** 2, ((cells + 1) * side) ** 2)} (layout sequence: multiples of {patch})"
        )
