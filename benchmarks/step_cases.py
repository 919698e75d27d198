"""Training steps: forward and backward of the quantizer beside its dense form, and the default study's tokenizers."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cases import Case, Work, codes, normal, tokens, wait_for
from torch import Tensor, nn
from torch.nn import functional as F

from fvq.config import load_parameters
from fvq.quantize import VQBridge, build_quantizer
from fvq.tokenizer import Tokenizer

DIM = 256
# Of the loss, as in Eq. 5.
COMMITMENT = 0.25

Forward = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
# (tokens, codes, device) to the work.
Build = Callable[[int, int, str], Work]


def step_cases(device: str) -> list[Case]:
    """Every training step on ``cpu`` or ``cuda``."""
    rounds = 5 if device == "cuda" else 1
    cases = []
    # Half the tokens at 262,144 codes: some rivals hold several N×K matrices.
    for number_of_tokens, codebook_size, turns in ((2048, 65536, 3), (1024, 262144, 2)):
        count, size = tokens(number_of_tokens), codes(codebook_size)
        # The released form's several N×K matrices are measured at one size.
        fvq = FVQ | AS_RELEASED if codebook_size == 65536 else FVQ
        for name, rivals in (("vq", VQ), ("fvq", fvq)):
            cases.append(
                Case(
                    title=f"Forward and backward, {name}: {count:,} tokens, {size:,} codes, d = {DIM}",
                    base=RELEASED if RELEASED in rivals else DENSE,
                    rivals={rival: partial(build, count, size, device) for rival, build in rivals.items()},
                    agree=agree,
                    turns=turns,
                    rounds=rounds,
                )
            )
    rows = ("vq", "linear", "mlp5", "fvq")
    cases.append(
        Case(
            title="Forward, backward and Adam: the default study's tokenizer, 32 images",
            base="vq",
            rivals={row: partial(_tokenizer, row, device) for row in rows},
            agree=lambda result, expected: None,
            rounds=5,
        )
    )
    return cases


class Dense(nn.Module):
    """The loss as one writes it first: all N×K distances under autograd, argmin, gather (as LlamaGen does it)."""

    def __init__(self, codebook_kd: Tensor, projector: nn.Module) -> None:
        super().__init__()
        self.codebook = nn.Parameter(codebook_kd.clone())
        self.projector = projector

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The quantized vectors (B, d, h, w), the indices (N,) and the loss of z (B, d, h, w)."""
        codebook_kd = self.projector(self.codebook)
        z_bhwd = z.movedim(1, -1)
        z_nd = z_bhwd.reshape(-1, codebook_kd.shape[1])
        norms_nk = z_nd.square().sum(1, keepdim=True) + codebook_kd.square().sum(1)
        indices_n = (norms_nk - 2 * z_nd @ codebook_kd.T).argmin(1)
        return self.quantize(z_bhwd, codebook_kd, indices_n)

    def quantize(self, z_bhwd: Tensor, codebook_kd: Tensor, indices_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The quantized vectors (B, d, h, w), the indices and the loss of known nearest codes."""
        codes_bhwd = codebook_kd[indices_n].reshape(z_bhwd.shape)
        codebook_loss = F.mse_loss(codes_bhwd, z_bhwd.detach())
        loss = codebook_loss + COMMITMENT * F.mse_loss(z_bhwd, codes_bhwd.detach())
        quantized_bhwd = z_bhwd + (codes_bhwd - z_bhwd).detach()
        return quantized_bhwd.movedim(-1, 1), indices_n, loss


class Released(Dense):
    """The dense form with the entropy term of the released training step (FVQ's ``VectorQuantizer``).

    The term's weight is 0. It is computed all the same, and its gradient of zeros goes back through all N×K distances.
    """

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the dense form."""
        codebook_kd = self.projector(self.codebook)
        z_bhwd = z.movedim(1, -1).contiguous()
        z_nd = z_bhwd.reshape(-1, codebook_kd.shape[1])
        squares_n1, squares_k = z_nd.square().sum(1, keepdim=True), codebook_kd.square().sum(1)
        distances_nk = squares_n1 + squares_k - 2 * (z_nd @ codebook_kd.T)
        quantized, indices_n, loss = self.quantize(z_bhwd, codebook_kd, distances_nk.argmin(1))
        return quantized, indices_n, loss + 0.0 * entropy_term(distances_nk)


def entropy_term(distances_nk: Tensor) -> Tensor:
    """Mean entropy of the tokens' soft assignments (N, K) at temperature 0.01, less the entropy of their mean."""
    logits_nk = (-distances_nk).div_(0.01)
    assigned_nk = logits_nk.softmax(1)
    log_assigned_nk = (logits_nk + 1e-5).log_softmax(1)
    mean_k = assigned_nk.mean(0)
    return (mean_k * (mean_k + 1e-5).log()).sum() - (assigned_nk * log_assigned_nk).sum(1).mean()


class Unbatched(nn.Module):
    """The bridge for libraries that hold codebooks as (1, K, d)."""

    def __init__(self, bridge: nn.Module) -> None:
        super().__init__()
        self.bridge = bridge

    def forward(self, codebook_1kd: Tensor) -> Tensor:
        """Map the codebook (1, K, d) to (1, K, d)."""
        mapped_1kd: Tensor = self.bridge(codebook_1kd[0])[None]
        return mapped_1kd


def agree(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Loss and gradients are the first rival's, of those that the rival has.

    A token between two codes that float32 cannot tell apart may fall to either, and takes its gradient along.
    """
    same = result["indices"] == expected["indices"]
    assert same.float().mean() > 0.998, f"{int((~same).sum())} of {len(same)} indices differ"
    for name in result.keys() & expected.keys() - {"indices"}:
        tolerance = 1e-4 if name == "loss" or same.all() else 0.1
        difference = (result[name] - expected[name]).norm() / expected[name].norm()
        assert difference <= tolerance, f"{name} differs by {float(difference):.2g} of its norm"


def _step(forward: Forward, module: nn.Module, count: int, device: str, names: dict[str, str]) -> Work:
    """Forward and backward, giving indices (N,), loss and gradients; ``names`` changes how parameters' names start."""
    images = max(1, count // 256)
    side = math.isqrt(count // images)
    z = normal(0, images * DIM, side * side, device).reshape(images, DIM, side, side).clone().requires_grad_()
    upstream = normal(2, images * DIM, side * side, device).reshape(z.shape)
    trained = {
        new + name.removeprefix(old): parameter
        for name, parameter in module.named_parameters()
        for old, new in names.items()
        if name.startswith(old)
    }

    def work() -> dict[str, Tensor]:
        z.grad = None
        module.zero_grad(set_to_none=True)
        quantized, indices, loss = forward(z)
        torch.autograd.backward((loss, quantized), (None, upstream))
        wait_for(device)
        result = {"indices": indices.flatten(), "loss": loss.detach(), "z": z.grad}
        result |= {name: parameter.grad for name, parameter in trained.items()}
        return {name: value for name, value in result.items() if value is not None}

    return work


def _bridge(size: int) -> VQBridge:
    """A bridge whose mapped codes are about standard normal; at its start they are all at the origin."""
    torch.manual_seed(3)
    bridge = VQBridge(size, DIM)
    nn.init.normal_(bridge.expand.weight, std=bridge.expand.in_features**-0.5)
    return bridge


def _fvq(name: str, count: int, size: int, device: str) -> Work:
    quantizer: Any = build_quantizer(name, codebook_size=size, code_dim=DIM, commitment_weight=COMMITMENT)
    if name == "fvq":
        quantizer.projector = _bridge(size)
    with torch.no_grad():
        quantizer.codebook.copy_(normal(1, size, DIM, "cpu"))
    quantizer = quantizer.to(device).train()

    def forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = quantizer(z)
        return out.quantized, out.indices, out.loss

    return _step(forward, quantizer, count, device, {"": ""})


def _dense(name: str, count: int, size: int, device: str, form: type[Dense] = Dense) -> Work:
    projector = _bridge(size) if name == "fvq" else nn.Identity()
    dense = form(normal(1, size, DIM, "cpu"), projector).to(device)
    return _step(dense, dense, count, device, {"": ""})


def _vector_quantize(name: str, count: int, size: int, device: str) -> Work:
    """Its one term, mean |e - z|², has the codebook's gradient but neither our loss nor z's gradient."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(
        dim=DIM,
        codebook_size=size,
        learnable_codebook=True,
        ema_update=False,
        rotation_trick=False,
        accept_image_fmap=True,
        vq_bridge=Unbatched(_bridge(size)) if name == "fvq" else None,
    )
    with torch.no_grad():
        quantizer.codebook = normal(1, size, DIM, "cpu")
    quantizer = quantizer.to(device).train()
    names = {"_codebook.embed": "codebook", "_codebook.vq_bridge.bridge.": "projector."}
    step = _step(quantizer, quantizer, count, device, names)

    def work() -> dict[str, Tensor]:
        result = step()
        result["codebook"] = result["codebook"][0]
        return {key: value for key, value in result.items() if key not in ("loss", "z")}

    return work


def _sim_vq(count: int, size: int, device: str) -> Work:
    """The same loss; its raw codebook does not learn, so it saves that gradient."""
    from vector_quantize_pytorch import SimVQ

    quantizer = SimVQ(
        dim=DIM,
        codebook_size=size,
        codebook_transform=_bridge(size),
        channel_first=True,
        rotation_trick=False,
        input_to_quantize_commit_loss_weight=COMMITMENT,
    )
    quantizer.frozen_codebook.copy_(normal(1, size, DIM, "cpu"))
    quantizer = quantizer.to(device).train()
    return _step(quantizer, quantizer, count, device, {"code_transform.": "projector."})


def _tokenizer(row: str, device: str) -> Work:
    torch.manual_seed(0)
    tokenizer = Tokenizer(load_parameters().tokenizer_config(row)).to(device).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-3, fused=True)
    size = tokenizer.config.image_size
    images = (torch.rand(32, 3, size, size) * 2 - 1).to(device)

    def work() -> None:
        reconstruction, quantized = tokenizer(images)
        optimizer.zero_grad()
        torch.autograd.backward(F.mse_loss(reconstruction, images) + quantized.loss)
        optimizer.step()
        wait_for(device)

    return work


DENSE = "dense form"
RELEASED = "released form"
VQ: dict[str, Build] = {
    'build_quantizer("vq")': partial(_fvq, "vq"),
    DENSE: partial(_dense, "vq"),
    "vector-quantize-pytorch VectorQuantize(learnable_codebook=True)": partial(_vector_quantize, "vq"),
}
FVQ: dict[str, Build] = {
    'build_quantizer("fvq")': partial(_fvq, "fvq"),
    DENSE: partial(_dense, "fvq"),
    "vector-quantize-pytorch VectorQuantize(vq_bridge=VQBridge)": partial(_vector_quantize, "fvq"),
    "vector-quantize-pytorch SimVQ(codebook_transform=VQBridge)": _sim_vq,
}
AS_RELEASED: dict[str, Build] = {RELEASED: partial(_dense, "fvq", form=Released)}
