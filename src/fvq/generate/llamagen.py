"""LlamaGen: the class-conditional transformer over image tokens (Sun et al., 2024, arXiv:2406.06525).

The modules bear the names of the released checkpoints (``autoregressive/models/gpt.py`` of FoundationVision/LlamaGen).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn

from fvq.generate.decoding import sample_tokens
from fvq.generate.rotary import rotary_table, rotate
from fvq.generate.sampling import SamplingSettings
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.weights import load_weights, save_weights

_INITIAL_STD = 0.02


class LlamaGenConfig(BaseModel):
    """Everything that shapes a generator."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    vocabulary_size: int = Field(ge=2, description="codes of the tokenizer")
    classes: PositiveInt = Field(description="image classes, the null class not counted")
    grid: tuple[PositiveInt, PositiveInt] = Field(description="rows and columns of tokens in an image")
    tokenizer_sha256: str | None = Field(
        default=None, description="SHA-256 of the tokenizer's file whose codes it learned; null where it is not known"
    )
    width: PositiveInt = Field(description="channels of the residual stream")
    depth: PositiveInt = Field(description="transformer blocks")
    heads: PositiveInt = Field(description="attention heads of a block")
    feedforward_multiple_of: PositiveInt = Field(
        default=256, description="the feed-forward width, 2/3 of 4 * width, is rounded up to a multiple of this"
    )
    class_dropout: float = Field(ge=0, lt=1, description="share of training images whose class is hidden, for guidance")
    token_dropout: float = Field(ge=0, lt=1, description="dropout on the embedded sequence, class included")
    residual_dropout: float = Field(ge=0, lt=1, description="dropout on what attention adds")
    feedforward_dropout: float = Field(ge=0, lt=1, description="dropout on what the feed-forward layer adds")
    drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of images that skip a branch of the last block; it rises evenly from 0 at the first block",
    )
    norm_eps: PositiveFloat = Field(default=1e-5, description="added to the mean square under the root")
    rope_base: PositiveFloat = Field(default=10000.0, description="base of the rotary frequencies")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be divisible by heads ({self.heads})")
        if self.head_width % 4:
            raise ValueError(
                f"width / heads ({self.head_width}) must be divisible by 4: rotary positions turn pairs of channels, "
                "half of them by row and half by column"
            )
        return self

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def feedforward_width(self) -> int:
        """Channels inside the SwiGLU layer."""
        multiple = self.feedforward_multiple_of
        return -(-(8 * self.width // 3) // multiple) * multiple


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, whole images of ``x`` (B, ...) become 0 with this rate.

    The others are divided by the share that is kept.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        dropped = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) < self.rate
        return (x / (1 - self.rate)).masked_fill(dropped, 0)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)
        self.resid_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        qkv = self.wqkv(x).unflatten(-1, (3, self.heads, -1))
        query, key = rotate(qkv[:, :, :2], table).transpose(1, 3).unbind(2)
        value = qkv[:, :, 2].transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        added: Tensor = self.resid_dropout(self.wo(mixed.transpose(1, 2).flatten(2)))
        return added


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.feedforward_width, bias=False)
        self.w3 = nn.Linear(config.width, config.feedforward_width, bias=False)
        self.w2 = nn.Linear(config.feedforward_width, config.width, bias=False)
        self.ffn_dropout = nn.Dropout(config.feedforward_dropout)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))
        return added


class Block(nn.Module):
    """Attention, then SwiGLU, each after an RMSNorm and added to the stream."""

    def __init__(self, config: LlamaGenConfig, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.attention_norm(x), table))
        added: Tensor = self.drop_path(self.feed_forward(self.ffn_norm(x)))
        return x + added


class ClassEmbedding(nn.Module):
    """Embeds labels; the last entry is the null class, which stands for a hidden label."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.null = config.classes
        self.dropout = config.class_dropout
        self.embedding_table = nn.Embedding(config.classes + 1, config.width)

    def forward(self, labels: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            hidden = torch.rand(labels.shape, device=labels.device) < self.dropout
            labels = labels.masked_fill(hidden, self.null)
        embedded: Tensor = self.embedding_table(labels)
        return embedded


class LlamaGen(nn.Module):
    """Predicts an image's tokens one after another, in row-major order, from its class and the tokens before.

    Labels run from 0 to ``classes - 1``; the label ``classes`` is the null class.
    """

    table: Tensor

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = ClassEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.vocabulary_size, config.width)
        self.tok_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(
            Block(config, config.drop_path * index / max(config.depth - 1, 1)) for index in range(config.depth)
        )
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.output = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.register_buffer("table", self._rotary_table(), persistent=False)
        self._initialize()

    def _rotary_table(self) -> Tensor:
        weight, config = self.output.weight, self.config
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return rotary_table(config.grid, config.head_width, config.rope_base, dtype).to(weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # Positions stay exact under bfloat16 and float64 weights, and come to be where the meta device is left.
        self.table = self._rotary_table()
        return self

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.output.weight)

    def features(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """What the output layer sees: (B, T, width) for labels (B,) and tokens (B, T), as in ``forward``."""
        embedded = torch.cat([self.cls_embedding(labels)[:, None], self.tok_embeddings(tokens[:, :-1])], dim=1)
        x = self.tok_dropout(embedded)
        table = self.table[: x.shape[1]]
        for block in self.layers:
            x = block(x, table)
        features: Tensor = self.norm(x)
        return features

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocabulary_size) for labels (B,) and tokens (B, T), both int64, T at most h*w.

        Those of token t follow from the label and the tokens before t; the last token is never looked at.
        """
        logits: Tensor = self.output(self.features(labels, tokens))
        return logits

    def sample(
        self,
        labels: Tensor,
        *,
        cfg_scale: float,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
        cfg_start: int = 0,
        image_numbers: Tensor | None = None,
    ) -> Tensor:
        """Draw the tokens of one image per label, (B, h*w) int64, on the CPU.

        Each image draws from a random stream of its own, named by ``seed`` and its number (by default its place among
        the labels), so that it does not depend on which images are drawn beside it: with oneDNN on a CPU to the bit,
        elsewhere up to the rounding of matrix products of different sizes.

        Args:
            labels: (B,) int64.
            cfg_scale: classifier-free guidance, logits = unconditional + scale * (conditional - unconditional); 1 is
                none.
            temperature: divides the logits; 0 takes the likeliest token (the lowest of equals).
            top_k: only the k likeliest tokens are drawn; 0 is all.
            top_p: only the smallest set of likeliest tokens with at least this probability is drawn; 1 is all.
            seed: of all images.
            cfg_start: the first token that is guided, from 0. The released ``cfg_interval`` is the reverse, its end.
            image_numbers: (B,) int64.

        Raises:
            UserError: a value is out of range, or guidance is asked of a model trained without class dropout.
        """
        try:
            settings = SamplingSettings(
                cfg_scale=cfg_scale, cfg_start=cfg_start, temperature=temperature, top_k=top_k, top_p=top_p
            )
        except ValidationError as error:
            raise UserError(describe_validation_error(error, "sample")) from None
        if image_numbers is None:
            image_numbers = torch.arange(len(labels))
        return sample_tokens(self, labels, settings, seed, image_numbers)

    def save(self, path: Path | str) -> None:
        """Write weights and configuration to one safetensors file."""
        save_weights(path, self.state_dict(), kind="generator", config=self.config.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> "LlamaGen":
        """The generator of a file that ``save`` wrote, on the CPU, in evaluation mode; UserError names a bad file."""
        tensors, config = load_weights(path, kind="generator")
        try:
            checked = LlamaGenConfig.model_validate(config)
        except ValidationError as error:
            raise UserError(describe_validation_error(error, str(path))) from None
        with torch.device("meta"):
            model = cls(checked)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(f"{path}: {name} is {found.get(name)} and must be {wanted.get(name)}")
        model.to_empty(device="cpu").load_state_dict(tensors)
        return model.eval()
