"""The generator's loss, without the logits of all tokens in memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits that exist at once. A CPU gains nothing from more, whose caches they leave; a GPU needs them to be busy.
_ROWS_ON_CPU = 256
_LOGITS_ON_GPU = 2**26


def linear_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy (nats) of logits ``features @ weight.T`` and the share of rows whose largest logit is right.

    Under autocast the matrix products take its dtype; all sums are in float32 at least, and so is the loss.

    Args:
        features: (N, width).
        weight: (K, width).
        targets: (N,) int64.
    """
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
    loss, accuracy = _LinearCrossEntropy.apply(features, weight, targets, dtype)
    return loss, accuracy


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made together with the loss, so that only a few rows of logits exist at any moment."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Any:
        exact = torch.promote_types(dtype, torch.float32)
        multiplied = weight.to(dtype)
        loss = torch.zeros((), dtype=exact, device=features.device)
        correct = targets.new_zeros(())
        for_features, for_weight = torch.empty_like(features), torch.zeros_like(weight, dtype=exact)
        rows = _ROWS_ON_CPU if features.device.type == "cpu" else max(_ROWS_ON_CPU, _LOGITS_ON_GPU // len(weight))
        pieces = (torch.split(part, rows) for part in (features, targets, for_features))
        for x, y, gradient in zip(*pieces, strict=True):
            x = x.to(dtype)
            logits = _product(x, multiplied.T, exact)
            largest, guess = logits.max(1)
            correct += (guess == y).sum()
            of_target = logits.gather(1, y[:, None])[:, 0] - largest
            exponentials = logits.sub_(largest[:, None]).exp_()
            total = exponentials.sum(1)
            loss += (total.log() - of_target).sum()
            # Softmax minus the one-hot target is the gradient with respect to the logits.
            probabilities = exponentials.div_(total[:, None])
            probabilities[torch.arange(len(y), device=y.device), y] -= 1
            for_logits = probabilities.div_(len(targets)).to(dtype)
            gradient.copy_(for_logits @ multiplied)
            if dtype == exact:
                for_weight.addmm_(for_logits.T, x)
            else:
                for_weight += _product(for_logits.T, x, exact)
        ctx.save_for_backward(for_features, for_weight.to(weight.dtype))
        accuracy = correct / len(targets)
        ctx.mark_non_differentiable(accuracy)
        return loss / len(targets), accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        for_features, for_weight = ctx.saved_tensors
        return for_features * scale.to(for_features.dtype), for_weight * scale.to(for_weight.dtype), None, None


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix product as ``dtype``, which a GPU gives unrounded."""
    if left.dtype != dtype and left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)
