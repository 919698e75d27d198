"""One optimisation step of a generator, by this process or by all of its group."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fvq.generate.llamagen import LlamaGen, LlamaGenConfig
from fvq.generate.loss import linear_cross_entropy
from fvq.generate.settings import GeneratorTraining
from fvq.generate.sharding import WholeOptimizer, WholeWeights, shard
from fvq.quantize.processes import number_of_processes
from fvq.runtime.processes import data_parallel
from fvq.runtime.training import Stateful


class _Loss(nn.Module):
    """All that computes with parameters, in one forward: gradients are exchanged, and weights gathered, around it."""

    def __init__(self, model: LlamaGen) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.features(labels, tokens)
        return linear_cross_entropy(features.flatten(0, 1), self.model.output.weight, tokens.flatten())


def build_optimizer(model: LlamaGen, settings: GeneratorTraining) -> torch.optim.AdamW:
    """AdamW that decays matrices and embeddings and leaves the norms' scales alone; each step is given its rate."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=settings.betas, fused=True)


class GeneratorStep:
    """A generator in training, with its loss and optimiser; its weights are drawn from torch's global stream."""

    def __init__(self, config: LlamaGenConfig, settings: GeneratorTraining, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.model = LlamaGen(config)
        self.sharded = settings.sharding == "full" and number_of_processes() > 1
        lower = settings.precision == "bfloat16"
        loss = _Loss(self.model)
        if self.sharded:
            shard(loss, self.model.layers, device, torch.bfloat16 if lower else torch.float32)
        else:
            loss.to(device)
        loss.train()
        if settings.compile:
            for block in self.model.layers:  # all with one result: much sooner done than the whole
                block.forward = torch.compile(block.forward)
        self.loss = loss if self.sharded else data_parallel(loss)
        self.optimizer = build_optimizer(self.model, settings)
        self._autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower)

    def state(self) -> dict[str, Stateful]:
        """What a checkpoint holds of it: the same whatever the number of processes and the sharding."""
        if self.sharded:
            return {"model": WholeWeights(self.model), "optimizer": WholeOptimizer(self.optimizer)}
        return {"model": self.model, "optimizer": self.optimizer}

    def __call__(self, tokens: Tensor, labels: Tensor, rate: float) -> dict[str, Tensor]:
        """A step at the learning rate ``rate`` on this process's tokens (B, h*w) and labels (B,), both int64.

        Returns ``loss`` and ``accuracy`` of this process, and ``gradient_norm`` of all before clipping.
        """
        count = self.settings.accumulate
        loss, accuracy = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for number, (part, classes) in enumerate(zip(tokens.chunk(count), labels.chunk(count), strict=True)):
            with self._part(last=number == count - 1):
                with self._autocast:
                    of_part, right = self.loss(self._send(part), self._send(classes))
                torch.autograd.backward(of_part / count)
            loss += of_part.detach() / count
            accuracy += right / count
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return {"loss": loss, "accuracy": accuracy, "gradient_norm": whole_norm}

    def _send(self, values: Tensor) -> Tensor:
        """To the device. From other memory than pinned a GPU copies when it has nothing else to do, and one waits."""
        return (values.pin_memory() if self.device.type == "cuda" else values).to(self.device, non_blocking=True)

    def _part(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part: under DDP, processes speak to each other at the last one only.

        Sharded gradients are averaged with each part, so that no process holds them whole.
        """
        if last or not isinstance(self.loss, DistributedDataParallel):
            return nullcontext()
        silent: AbstractContextManager[None] = self.loss.no_sync()
        return silent

    def result(self) -> LlamaGen:
        """The generator in evaluation mode, whole, on the CPU of every process."""
        state = self.model.state_dict()
        with torch.device("meta"):
            model = LlamaGen(self.model.config)
        model.to_empty(device="cpu")
        for name, value in model.state_dict().items():
            found = state[name]
            value.copy_(found.full_tensor() if isinstance(found, DTensor) else found)
        return model.eval()
