"""The discriminator's normalization does not depend on how many processes share a batch."""

import pytest
import torch
from torch import nn

from fvq.tokenizer.discriminator import JointBatchNorm, PatchDiscriminator


def batches():
    """(8, 6, 5, 4) of different means and scales by channel and by half of the batch, and what comes from above."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, 5, 4, generator=random) * torch.arange(1.0, 7)[:, None, None] + 3
    x[4:] -= 5
    return x, torch.randn(x.shape, generator=random)


def train_twice(norm, parts):
    """Two forward passes and the second one's backward; outputs, input gradient."""
    x, upstream = (tensor[parts] for tensor in batches())
    norm(0.5 * x)
    x = x.clone().requires_grad_(True)
    out = norm(x)
    # Each process's loss is a mean over its part, and gradients are averaged over the processes.
    (out * upstream).sum().backward()
    return out.detach(), x.grad


def work(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = fresh(JointBatchNorm)
    out, gradient = train_twice(norm, slice(4 * rank, 4 * rank + 4))
    torch.save(
        {
            "out": out,
            "gradient": gradient,
            "weight": norm.weight.grad,
            "bias": norm.bias.grad,
            **dict(norm.named_buffers()),
        },
        f"{folder}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def fresh(kind):
    norm = kind(6)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, 6))
        norm.bias.copy_(torch.linspace(-1, 1, 6))
    return norm


def test_two_processes_normalize_as_one_over_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = fresh(nn.BatchNorm2d).double()
    x, upstream = (tensor.double() for tensor in batches())
    whole(0.5 * x)
    x.requires_grad_(True)
    out = whole(x)
    (out * upstream).sum().backward()
    for name, expected in (("out", out), ("gradient", x.grad)):
        joined = torch.cat([part[name] for part in parts]).double()
        torch.testing.assert_close(joined, expected.detach(), rtol=1e-4, atol=1e-5)
    for name, expected in (("weight", whole.weight.grad), ("bias", whole.bias.grad)):
        torch.testing.assert_close(sum(part[name] for part in parts).double(), expected, rtol=1e-4, atol=1e-4)
    for name, buffer in whole.named_buffers():
        for part in parts:
            torch.testing.assert_close(part[name].double(), buffer.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_one_process_takes_torchs_own_path(training):
    joint, plain = fresh(JointBatchNorm).train(training), fresh(nn.BatchNorm2d).train(training)
    x, _ = batches()
    assert torch.equal(joint(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(joint.buffers(), plain.buffers(), strict=True))


def test_a_logit_for_each_patch():
    discriminator = PatchDiscriminator()
    assert discriminator(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    assert discriminator(torch.zeros(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    assert discriminator.smallest_side == 24
