"""Published tokenizers by their own names: random state dicts, and the forward pass read from one in float64.

Written from the publications' sources alone, by the shapes and formulas there; nothing of fvq is used.
"""

import math

import torch
from torch.nn import functional as F

CHANNELS, LATENT = 32, 16
MIDDLE = {"llamagen": ("mid.0", "mid.1", "mid.2"), "taming": ("mid.block_1", "mid.attn_1", "mid.block_2")}


def up_name(taming: bool, level: int, levels: int) -> str:
    return f"decoder.up.{level}" if taming else f"decoder.conv_blocks.{levels - 1 - level}"


class _Builder:
    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.state: dict[str, torch.Tensor] = {}

    def normal(self, *shape: int, std: float) -> torch.Tensor:
        return torch.randn(shape, generator=self.random) * std

    def weights(self, name: str, out: int, *rest: int) -> None:
        """A convolution or a linear layer."""
        self.state[f"{name}.weight"] = self.normal(out, *rest, std=math.prod(rest) ** -0.5)
        self.state[f"{name}.bias"] = self.normal(out, std=0.1)

    def norm(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 1 + self.normal(channels, std=0.1)
        self.state[f"{name}.bias"] = self.normal(channels, std=0.1)

    def block(self, name: str, channels: int, out: int) -> None:
        self.norm(f"{name}.norm1", channels)
        self.weights(f"{name}.conv1", out, channels, 3, 3)
        self.norm(f"{name}.norm2", out)
        self.weights(f"{name}.conv2", out, out, 3, 3)
        if channels != out:
            self.weights(f"{name}.nin_shortcut", out, channels, 1, 1)

    def attention(self, name: str, channels: int) -> None:
        self.norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            self.weights(f"{name}.{part}", channels, channels, 1, 1)

    def middle(self, name: str, channels: int, taming: bool) -> None:
        first, second, third = MIDDLE["taming" if taming else "llamagen"]
        self.block(f"{name}.{first}", channels, channels)
        self.attention(f"{name}.{second}", channels)
        self.block(f"{name}.{third}", channels, channels)


def autoencoder(
    *, codes: int = 64, dim: int = 8, multipliers=(1, 2), blocks: int = 1, taming: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """LlamaGen's and FVQ's state dict without bridge, or taming's without losses."""
    build = _Builder(seed)
    levels, part, down = len(multipliers), "block" if taming else "res", "down" if taming else "conv_blocks"
    build.weights("encoder.conv_in", CHANNELS, 3, 3, 3)
    current = CHANNELS
    for level, multiplier in enumerate(multipliers):
        for block in range(blocks):
            build.block(f"encoder.{down}.{level}.{part}.{block}", current, CHANNELS * multiplier)
            current = CHANNELS * multiplier
            if level == levels - 1:
                build.attention(f"encoder.{down}.{level}.attn.{block}", current)
        if level < levels - 1:
            build.weights(f"encoder.{down}.{level}.downsample.conv", current, current, 3, 3)
    build.middle("encoder", current, taming)
    build.norm("encoder.norm_out", current)
    build.weights("encoder.conv_out", LATENT, current, 3, 3)
    build.weights("decoder.conv_in", current, LATENT, 3, 3)
    build.middle("decoder", current, taming)
    for level in reversed(range(levels)):
        name = up_name(taming, level, levels)
        for block in range(blocks + 1):
            build.block(f"{name}.{part}.{block}", current, CHANNELS * multipliers[level])
            current = CHANNELS * multipliers[level]
            if level == levels - 1:
                build.attention(f"{name}.attn.{block}", current)
        if level:
            build.weights(f"{name}.upsample.conv", current, current, 3, 3)
    build.norm("decoder.norm_out", current)
    build.weights("decoder.conv_out", 3, current, 3, 3)
    build.state["quantize.embedding.weight"] = build.normal(codes, dim, std=0.5)
    if not taming:
        build.state["quantize.codebook_used"] = torch.zeros(65536)
    build.weights("quant_conv", dim, LATENT, 1, 1)
    build.weights("post_quant_conv", LATENT, dim, 1, 1)
    return build.state


def with_bridge(
    state: dict[str, torch.Tensor], *, side: int, width: int, depth: int = 2, labels: int = 0, seed: int = 1
) -> dict[str, torch.Tensor]:
    """The same in FVQ's training form: qbridge.py's with labels and positions, or qbridge_ViT.py's without labels."""
    build, name = _Builder(seed), "quantize.qbridge"
    codes, dim = state["quantize.embedding.weight"].shape
    build.weights(f"{name}.x_embedder.proj", width, dim, side, side)
    for index in range(depth):
        build.weights(f"{name}.blocks.{index}.attn.qkv", 3 * width, width)
        build.weights(f"{name}.blocks.{index}.attn.proj", width, width)
        build.weights(f"{name}.blocks.{index}.mlp.fc1", 2 * width, width)
        build.weights(f"{name}.blocks.{index}.mlp.fc2", width, 2 * width)
        if labels:
            build.weights(f"{name}.blocks.{index}.adaLN_modulation.1", 6 * width, width)
    build.weights(f"{name}.final_layer.linear", side * side * dim, width)
    if labels:
        build.weights(f"{name}.final_layer.adaLN_modulation.1", 2 * width, width)
        build.state[f"{name}.y_embedder.embedding_table.weight"] = build.normal(labels, width, std=1.0)
        build.state[f"{name}.pos_embed"] = fixed_positions(math.isqrt(codes) // side, width)[None]
    return {**state, **build.state}


def fixed_positions(cells: int, width: int) -> torch.Tensor:
    """Quarters of the channels: sines and cosines of the column, then of the row."""
    table = torch.empty(cells * cells, width, dtype=torch.float64)
    for row in range(cells):
        for column in range(cells):
            for channel in range(width // 4):
                rate = 1 / 10000 ** (channel / (width / 4))
                values = (math.sin(column * rate), math.cos(column * rate), math.sin(row * rate), math.cos(row * rate))
                for quarter, value in enumerate(values):
                    table[row * cells + column, quarter * width // 4 + channel] = value
    return table.float()


class Published:
    """The published forward pass, by the names in a state dict."""

    def __init__(self, state: dict[str, torch.Tensor], *, l2_norm: bool = False, heads: int = 4) -> None:
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.taming = "encoder.down.0.block.0.conv1.weight" in state
        self.part = "block" if self.taming else "res"
        self.down = "encoder.down" if self.taming else "encoder.conv_blocks"
        self.levels = sum(f"{self.down}.{level}.{self.part}.0.conv1.weight" in state for level in range(9))
        self.l2_norm, self.heads = l2_norm, heads

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Indices (B, h, w)."""
        x = self._conv("encoder.conv_in", images.double())
        for level in range(self.levels):
            x = self._level(f"{self.down}.{level}", x)
            if level < self.levels - 1:
                x = self._conv(f"{self.down}.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        x = self._conv("encoder.conv_out", self._swish_norm("encoder.norm_out", self._middle("encoder", x)))
        z = self._conv("quant_conv", x, padding=0).movedim(1, -1)
        return torch.cdist(self._normalised(z.flatten(0, 2)), self.codebook()).argmin(1).view(z.shape[:-1])

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W), not clamped."""
        x = self._conv("post_quant_conv", self.codebook()[indices].movedim(-1, 1), padding=0)
        x = self._middle("decoder", self._conv("decoder.conv_in", x))
        for level in reversed(range(self.levels)):
            name = up_name(self.taming, level, self.levels)
            x = self._level(name, x)
            if level:
                x = self._conv(f"{name}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self._conv("decoder.conv_out", self._swish_norm("decoder.norm_out", x))

    def codebook(self) -> torch.Tensor:
        """The codes (K, d) that latents are compared with."""
        codes = self.state["quantize.embedding.weight"]
        if "quantize.qbridge.x_embedder.proj.weight" in self.state:
            codes = self._bridged(codes)
        return self._normalised(codes)

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.norm(dim=-1, keepdim=True) if self.l2_norm else x

    def _conv(self, name: str, x: torch.Tensor, stride: int = 1, padding: int = 1) -> torch.Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride, padding)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def _swish_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self._norm(name, x)
        return x * torch.sigmoid(x)

    def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        hidden = self._conv(f"{name}.conv1", self._swish_norm(f"{name}.norm1", x))
        hidden = self._conv(f"{name}.conv2", self._swish_norm(f"{name}.norm2", hidden))
        if f"{name}.nin_shortcut.weight" in self.state:
            x = self._conv(f"{name}.nin_shortcut", x, padding=0)
        return x + hidden

    def _attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        normed = self._norm(f"{name}.norm", x)
        query, key, value = (self._conv(f"{name}.{part}", normed, padding=0).flatten(2) for part in "qkv")
        shares = torch.softmax(query.transpose(1, 2) @ key * x.shape[1] ** -0.5, dim=2)
        return x + self._conv(f"{name}.proj_out", (value @ shares.transpose(1, 2)).view(x.shape), padding=0)

    def _level(self, name: str, x: torch.Tensor) -> torch.Tensor:
        block = 0
        while f"{name}.{self.part}.{block}.conv1.weight" in self.state:
            x = self._block(f"{name}.{self.part}.{block}", x)
            if f"{name}.attn.{block}.q.weight" in self.state:
                x = self._attention(f"{name}.attn.{block}", x)
            block += 1
        return x

    def _middle(self, side: str, x: torch.Tensor) -> torch.Tensor:
        first, second, third = (f"{side}.{name}" for name in MIDDLE["taming" if self.taming else "llamagen"])
        return self._block(third, self._attention(second, self._block(first, x)))

    def _bridged(self, codes: torch.Tensor) -> torch.Tensor:
        """The codebook as an image of codes, through FVQ's bridge."""
        name, root = "quantize.qbridge", math.isqrt(len(codes))
        weight = self.state[f"{name}.x_embedder.proj.weight"]
        dim, side = weight.shape[1:3]
        image = codes.T.reshape(1, dim, root, root)
        x = F.conv2d(image, weight, self.state[f"{name}.x_embedder.proj.bias"], stride=side)[0].flatten(1).T
        condition = None
        if f"{name}.pos_embed" in self.state:
            x = x + self.state[f"{name}.pos_embed"][0]
            label = self.state[f"{name}.y_embedder.embedding_table.weight"][-1:]
            condition = label * torch.sigmoid(label)
        index = 0
        while f"{name}.blocks.{index}.attn.qkv.weight" in self.state:
            block = f"{name}.blocks.{index}"
            shift, scale, gate, shift2, scale2, gate2 = self._modulation(f"{block}.adaLN_modulation.1", condition, 6)
            x = x + gate * self._self_attention(f"{block}.attn", self._layer_norm(x) * (1 + scale) + shift)
            hidden = self._linear(f"{block}.mlp.fc1", self._layer_norm(x) * (1 + scale2) + shift2)
            hidden = 0.5 * hidden * (1 + torch.tanh((2 / math.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
            x = x + gate2 * self._linear(f"{block}.mlp.fc2", hidden)
            index += 1
        shift, scale = self._modulation(f"{name}.final_layer.adaLN_modulation.1", condition, 2)
        x = self._linear(f"{name}.final_layer.linear", self._layer_norm(x) * (1 + scale) + shift)
        cells = root // side
        return x.view(cells, cells, side, side, dim).permute(0, 2, 1, 3, 4).reshape(len(codes), dim)

    def _modulation(self, name: str, condition: torch.Tensor | None, parts: int):
        if condition is None:
            return (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)[:parts]
        return self._linear(name, condition).chunk(parts, dim=1)

    def _self_attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (part.unflatten(1, (self.heads, -1)) for part in self._linear(f"{name}.qkv", x).chunk(3, 1))
        mixed = []
        for head in range(self.heads):
            scores = query[:, head] @ key[:, head].T / query.shape[2] ** 0.5
            mixed.append(torch.softmax(scores, dim=1) @ value[:, head])
        return self._linear(f"{name}.proj", torch.cat(mixed, dim=1))

    @staticmethod
    def _layer_norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
