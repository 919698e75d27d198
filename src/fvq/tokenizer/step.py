"""One optimisation step of a tokenizer: the losses of Eq. 35 and their descent."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fvq.data.image_table import to_model_range
from fvq.evaluate.networks.lpips_network import load_lpips_network
from fvq.evaluate.networks.pretrained import VGG16_FILE, find_pretrained, where_to_put
from fvq.quantize.quantizer import Quantized
from fvq.runtime.errors import UserError
from fvq.runtime.processes import data_parallel
from fvq.runtime.training import Stateful
from fvq.tokenizer.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from fvq.tokenizer.settings import TokenizerTraining
from fvq.tokenizer.tokenizer import Tokenizer


class Descent:
    """A module with its Adam; with several processes its gradients are averaged as they are computed."""

    def __init__(self, module: nn.Module, settings: TokenizerTraining) -> None:
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.module = data_parallel(module)
        self.clip = settings.gradient_clip
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=settings.scaled_learning_rate, betas=settings.betas, fused=True
        )

    def part(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part of a batch: processes speak to each other at the last one only."""
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        silent: AbstractContextManager[None] = self.module.no_sync()
        return silent

    def descend(self, rate: float) -> Tensor:
        """One step along the gradients, which are then gone; their norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


class Adversary(Descent):
    """The discriminator with its Adam."""

    def __init__(self, settings: TokenizerTraining, device: torch.device) -> None:
        self.discriminator = PatchDiscriminator().to(device).train()
        super().__init__(_DiscriminatorLoss(self.discriminator), settings)


class _DiscriminatorLoss(nn.Module):
    def __init__(self, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        return discriminator_loss(self.discriminator(real).float(), self.discriminator(fake).float())


class TokenizerStep:
    """Encoder, quantizer, decoder and discriminator with their losses and optimisers.

    Args:
        tokenizer: in training mode, on its device.
        settings: losses and optimiser.

    Raises:
        UserError: images too small for the discriminator, or the perceptual loss has no weights.
    """

    def __init__(self, tokenizer: Tokenizer, settings: TokenizerTraining) -> None:
        device, size = tokenizer.device, tokenizer.config.image_size
        self.tokenizer, self.settings = tokenizer, settings
        self.perceptual = _perceptual_network(settings, device)
        self.descent = Descent(tokenizer, settings)
        self.adversary = Adversary(settings, device) if settings.adversarial_weight else None
        if self.adversary and size < self.adversary.discriminator.smallest_side:
            raise UserError(
                f"train_tokenizer.adversarial_weight: the discriminator needs images of at least "
                f"{self.adversary.discriminator.smallest_side} pixels, not {size}; 0 leaves it out"
            )

    def state(self) -> dict[str, Stateful]:
        """What a checkpoint holds of it."""
        parts: dict[str, Stateful] = {"tokenizer": self.tokenizer, "optimizer": self.descent.optimizer}
        if self.adversary:
            parts["discriminator"] = self.adversary.discriminator
            parts["discriminator_optimizer"] = self.adversary.optimizer
        return parts

    def __call__(
        self, index: int, images_u8: Tensor, rate: float, on_codes: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        """Step ``index`` at the learning rate ``rate`` on images uint8 (B, 3, H, W) of this process.

        ``on_codes`` sees the indices. Returns ``loss``, its terms by name, weighted, and the gradient's norm before
        clipping, ``gradient_norm``; where the discriminator learns, its weighted loss ``discriminator`` and
        ``discriminator_gradient_norm``.
        """
        adversary = self.adversary if index >= self.settings.adversarial_start else None
        parts = images_u8.to(self.tokenizer.device, non_blocking=True).chunk(self.settings.accumulate)
        figures: dict[str, Tensor] = {}
        pairs = []
        for number, part_u8 in enumerate(parts):
            images = to_model_range(part_u8)
            with self.descent.part(last=number == len(parts) - 1):
                with self._autocast():
                    reconstruction, quantized = self.descent.module(images)
                    terms = self._terms(images, reconstruction.float(), quantized, adversary)
                loss = torch.stack(list(terms.values())).sum()
                torch.autograd.backward(loss / len(parts))
            on_codes(quantized.indices)
            _add(figures, {"loss": loss, **terms}, len(parts))
            pairs.append((images, reconstruction.detach().float()))
        figures["gradient_norm"] = self.descent.descend(rate)
        if adversary:
            self._train_discriminator(adversary, pairs, rate, figures)
        return figures

    def _terms(
        self, images: Tensor, reconstruction: Tensor, quantized: Quantized, adversary: Adversary | None
    ) -> dict[str, Tensor]:
        settings = self.settings
        error = settings.reconstruction_weight * F.mse_loss(reconstruction, images)
        terms = {"reconstruction": error, **quantized.terms}
        if self.perceptual:
            terms["perceptual"] = settings.perceptual_weight * self.perceptual(reconstruction, images).float().mean()
        if adversary:
            adversary.discriminator.requires_grad_(False)
            logits = adversary.discriminator(reconstruction).float()
            terms["adversarial"] = settings.adversarial_weight * generator_loss(logits)
        return terms

    def _train_discriminator(
        self, adversary: Adversary, pairs: list[tuple[Tensor, Tensor]], rate: float, figures: dict[str, Tensor]
    ) -> None:
        """One step on images and their detached reconstructions."""
        adversary.discriminator.requires_grad_(True)
        for number, (real, fake) in enumerate(pairs):
            with adversary.part(last=number == len(pairs) - 1):
                with self._autocast():
                    loss = self.settings.adversarial_weight * adversary.module(real, fake)
                torch.autograd.backward(loss / len(pairs))
            _add(figures, {"discriminator": loss}, len(pairs))
        figures["discriminator_gradient_norm"] = adversary.descend(rate)

    def _autocast(self) -> torch.autocast:
        lower = self.settings.precision == "bfloat16"
        return torch.autocast(self.tokenizer.device.type, dtype=torch.bfloat16, enabled=lower)


def _add(sums: dict[str, Tensor], figures: dict[str, Tensor], parts: int) -> None:
    for name, value in figures.items():
        share = value.detach() / parts
        sums[name] = sums[name] + share if name in sums else share


def _perceptual_network(settings: TokenizerTraining, device: torch.device) -> nn.Module | None:
    """LPIPS-VGG without gradients of its own, or None where its weight is 0."""
    if not settings.perceptual_weight:
        return None
    parameter = "train_tokenizer.perceptual_weights"
    found = find_pretrained(VGG16_FILE, settings.perceptual_weights, parameter)
    if found is None:
        raise UserError(where_to_put(VGG16_FILE, parameter))
    return load_lpips_network("vgg", found).to(device)
