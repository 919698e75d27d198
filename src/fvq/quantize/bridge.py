"""VQBridge: the projector that maps the whole codebook at once (paper §3.2, Eq. 8 to 11)."""

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Layout = Literal["grid", "sequence"]


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

    The last layer starts at zero, as in the released code: every mapped code begins at the origin.

    Raises:
        ValueError: the sizes do not fit together; the message names sizes that do.
    """

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
    ) -> None:
        super().__init__()
        width = code_dim if width is None else width
        patch = default_patch(codebook_size) if patch is None else patch
        check_positive(code_dim=code_dim, depth=depth)
        check_bridge_sizes(codebook_size, width=width, heads=heads, patch=patch, layout=layout)
        if int(width * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {mlp_ratio} leaves no channel of a width of {width}")
        self.codebook_size, self.code_dim, self.patch = codebook_size, code_dim, patch
        self.layout: Layout = layout
        self.compress = nn.Linear(patch * code_dim, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.expand = nn.Linear(width, patch * code_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.expand.weight)

    def forward(self, codebook_kd: Tensor) -> Tensor:
        """Map the codebook (K, d) to (K, d)."""
        tokens_td = self.compress(self._patchify(codebook_kd))
        for block in self.blocks:
            tokens_td = block(tokens_td)
        tokens_td = F.layer_norm(tokens_td, tokens_td.shape[-1:], eps=1e-6)
        return self._unpatchify(self.expand(tokens_td))

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


class Block(nn.Module):
    """Pre-norm transformer block of the released bridge: norms without parameters, tanh-GELU, no dropout."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, int(width * mlp_ratio))
        self.mlp_out = nn.Linear(int(width * mlp_ratio), width)

    def forward(self, x_td: Tensor) -> Tensor:
        """Tokens (T, width) to (T, width)."""
        x_td = x_td + self._attend(F.layer_norm(x_td, x_td.shape[-1:], eps=1e-6))
        hidden = self.mlp_in(F.layer_norm(x_td, x_td.shape[-1:], eps=1e-6))
        return x_td + self.mlp_out(F.gelu(hidden, approximate="tanh"))

    def _attend(self, x_td: Tensor) -> Tensor:
        tokens, width = x_td.shape
        qkv = self.attention_in(x_td).reshape(1, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.attention_out(mixed.transpose(1, 2).reshape(tokens, width))


def check_bridge_sizes(codebook_size: int, *, width: int, heads: int, patch: int, layout: Layout) -> None:
    """Raise ValueError where a bridge of these sizes cannot be built; the message names the nearest sizes that work."""
    check_positive(codebook_size=codebook_size, width=width, heads=heads, patch=patch)
    if width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} heads")
    if layout == "sequence":
        if codebook_size % patch:
            below = codebook_size // patch * patch
            raise ValueError(
                f"codebook_size {codebook_size} is not divisible by the bridge's patch of {patch} codes; "
                f"{_nearest(below, below + patch)}"
            )
        return
    if layout != "grid":
        raise ValueError(f"layout must be 'grid' or 'sequence', not {layout!r}")
    side = math.isqrt(patch)
    if side * side != patch:
        raise ValueError(f"the grid layout needs a square patch (1, 4, 16, 64, …), not {patch}")
    cells = math.isqrt(codebook_size) // side
    if (cells * side) ** 2 != codebook_size:
        raise ValueError(
            f"codebook_size {codebook_size} is not divisible by the bridge's patch of {patch} codes as a square grid; "
            f"{_nearest((cells * side) ** 2, ((cells + 1) * side) ** 2)} (layout sequence: multiples of {patch})"
        )


def _nearest(below: int, above: int) -> str:
    if below:
        return f"the nearest sizes that work are {below} and {above}"
    return f"the smallest size that works is {above}"


def check_positive(**sizes: int) -> None:
    """Raise ValueError naming a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
