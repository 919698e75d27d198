"""LlamaGen: the class-conditional transformer over image tokens (Sun et al., 2024, arXiv:2406.06525).

The modules bear the names of the released checkpoints (``autoregressive/models/gpt.py`` of FoundationVision/LlamaGen).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn

from fvq.generate.sampling import LayerCache, SamplingSettings, check_sampling, sample_tokens
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.weights import load_weights, save_weights

_INITIAL_STD = 0.02


class LlamaGenConfig(BaseModel):
    """Everything that shapes a generator."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    vocabulary_size: int = Field(ge=2, description="codes of the tokenizer")
    classes: PositiveInt = Field(description="image classes, the null class not counted")
    grid: tuple[PositiveInt, PositiveInt] = Field(description="rows and columns of tokens in an image")
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


def rotary_table(grid: tuple[int, int], head_width: int, base: float) -> Tensor:
    """Cosine and sine for the class token and each token of the grid, (1 + h*w, head_width / 2, 2) float32.

    The first half of a head's pairs turns with the row, the second with the column. The class token's entries are all
    zero, as released: its query and its key vanish, so that every token gives it the attention logit 0.
    """
    rows, columns = grid
    half = head_width // 2
    frequencies = base ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)
    by_row = torch.outer(torch.arange(rows), frequencies)[:, None].expand(-1, columns, -1)
    by_column = torch.outer(torch.arange(columns), frequencies)[None].expand(rows, -1, -1)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros_like(table[:1]), table]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring channels of ``x`` (B, T, ..., C), taken as complex numbers, by ``table`` (T, C/2, 2)."""
    pairs = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = pairs.reshape(*x.shape[:-1], -1, 2)
    turns = torch.view_as_complex(table.to(pairs.dtype))
    turns = turns.reshape(len(turns), *[1] * (x.dim() - 3), -1)
    return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)
        self.resid_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, table: Tensor, cache: LayerCache | None) -> Tensor:
        qkv = self.wqkv(x).unflatten(-1, (3, self.heads, -1))
        query, key = rotate(qkv[:, :, :2], table).transpose(1, 3).unbind(2)
        value = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
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

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, table: Tensor, cache: LayerCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, cache)
        added: Tensor = self.feed_forward(self.ffn_norm(x))
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
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.output = nn.Linear(config.width, config.vocabulary_size, bias=False)
        table = rotary_table(config.grid, config.head_width, config.rope_base)
        self.register_buffer("table", table, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.output.weight)

    def features(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """What the output layer sees: (B, T, width) for labels (B,) and tokens (B, T), as in ``forward``."""
        embedded = torch.cat([self.cls_embedding(labels)[:, None], self.tok_embeddings(tokens[:, :-1])], dim=1)
        return self._blocks(self.tok_dropout(embedded), self.table[: embedded.shape[1]], None)

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocabulary_size) for labels (B,) and tokens (B, T), both int64, T at most h*w.

        Those of token t follow from the label and the tokens before t; the last token is never looked at.
        """
        logits: Tensor = self.output(self.features(labels, tokens))
        return logits

    def start(self, labels: Tensor, caches: Sequence[LayerCache]) -> Tensor:
        """Logits (B, vocabulary_size) of the first token; ``caches`` (one per block) are filled for the next."""
        return self._step(self.cls_embedding(labels), caches)

    def advance(self, tokens: Tensor, caches: Sequence[LayerCache]) -> Tensor:
        """Logits (B, vocabulary_size) of the token after ``tokens`` (B,), the newest ones."""
        return self._step(self.tok_embeddings(tokens), caches)

    def _step(self, embedded: Tensor, caches: Sequence[LayerCache]) -> Tensor:
        position = caches[0].filled
        features = self._blocks(self.tok_dropout(embedded)[:, None], self.table[position : position + 1], caches)
        logits: Tensor = self.output(features[:, 0])
        return logits

    def _blocks(self, x: Tensor, table: Tensor, caches: Sequence[LayerCache] | None) -> Tensor:
        for index, block in enumerate(self.layers):
            x = block(x, table, caches[index] if caches is not None else None)
        features: Tensor = self.norm(x)
        return features

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
        """Draw the tokens of one image per label, (B, h*w) int64.

        Each image draws from a random stream of its own, named by ``seed`` and its number (by default its place among
        the labels), so that it does not depend on which images are drawn beside it, up to the rounding of matrix
        products of different sizes.

        Args:
            labels: (B,) int64.
            cfg_scale: classifier-free guidance, logits = unconditional + scale * (conditional - unconditional); 1 is
                none.
            temperature: divides the logits; 0 takes the likeliest token (the lowest of equals).
            top_k: only the k likeliest tokens are drawn; 0 is all.
            top_p: only the smallest set of likeliest tokens with at least this probability is drawn; 1 is all.
            seed: of all images.
            cfg_start: the first token that is guided, from 0.
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
        check_sampling(self, labels, settings)
        return sample_tokens(self, labels, settings, seed, image_numbers)

    def save(self, path: Path | str) -> None:
        """Write weights and configuration to one safetensors file."""
        save_weights(path, self.state_dict(), kind="generator", config=self.config.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> "LlamaGen":
        """The generator of a file that ``save`` wrote, on the CPU, in evaluation mode; UserError names a bad file."""
        tensors, config = load_weights(path, kind="generator")
        try:
            model = cls(LlamaGenConfig.model_validate(config))
        except ValidationError as error:
            raise UserError(describe_validation_error(error, str(path))) from None
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(f"{path}: {name} is {found.get(name)} and must be {wanted.get(name)}")
        model.load_state_dict(tensors)
        return model.eval()
