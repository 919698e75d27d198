"""The probe of Appendix E against a float64 reference: margins, displacements, bounds; it leaves training alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer_model import IMAGES, config, tokenizer
from torch import nn

from fvq.quantize import nearest_code
from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.finite_scalar import FiniteScalarQuantizer
from fvq.tokenizer import Tokenizer, stability
from fvq.tokenizer.stability import StabilityProbe, two_nearest


class Offset(nn.Module):
    """Features that can be moved freely: the images plus a parameter."""

    def __init__(self, shape):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(shape))

    def forward(self, images):
        return images + self.offset


def step(z0_nd, codebook0_kd, z1_nd, codebook1_kd):
    """The figures of a step from one state to the other."""
    codes, dim = codebook0_kd.shape
    quantizer = CodebookQuantizer(codes, dim, nn.Identity(), raw_codebook=codebook0_kd.clone())
    images = z0_nd.T.reshape(1, dim, 1, -1)
    free = SimpleNamespace(encoder=nn.Identity(), to_codes=Offset(images.shape), quantizer=quantizer)
    probe = StabilityProbe(free, images)
    probe.before()
    with torch.no_grad():
        free.to_codes.offset.copy_(z1_nd.T.reshape(images.shape) - images)
        quantizer.codebook.copy_(codebook1_kd)
    return probe.after()


def distances(z, codebook):
    return np.linalg.norm(z[:, None] - codebook, axis=2)


def reference(z0, codebook0, z1, codebook1):
    """What Eq. 21 to 27 say, from float64 arrays."""
    before = distances(z0, codebook0)
    old, new, same = before.argmin(1), distances(z1, codebook1).argmin(1), distances(z1, codebook0).argmin(1)
    nearest, second = np.sort(before, axis=1)[:, :2].T
    margin = second - nearest
    moved_z, moved_c = np.linalg.norm(z1 - z0, axis=1), np.linalg.norm(codebook1 - codebook0, axis=1)
    return {
        "code_displacement": moved_c.mean(),
        "code_displacement_max": moved_c.max(),
        "feature_displacement": moved_z.mean(),
        "feature_displacement_max": moved_z.max(),
        "margin_median": np.median(margin),
        "within_margin_share": (margin <= 2 * moved_z).mean(),
        "within_joint_margin_share": (margin <= 2 * (moved_z + moved_c.max())).mean(),
        "switched_share": (new != old).mean(),
        "switched_share_same_codebook": (same != old).mean(),
        "switched_outside_margin_share": ((margin > 2 * moved_z) & (new != old)).mean(),
        "bound_violations": 0.0,
        "center_shift": np.linalg.norm(codebook1[new] - codebook0[old], axis=1).mean(),
    }


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    codes=st.integers(2, 30),
    dim=st.integers(1, 5),
    feature_step=st.sampled_from([0.0, 1e-3, 0.05, 0.5]),
    code_step=st.sampled_from([0.0, 1e-3, 0.05, 0.5]),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_the_reference_and_no_token_breaks_a_bound(tokens, codes, dim, feature_step, code_step, seed):
    random = torch.Generator().manual_seed(seed)
    z0, codebook0 = torch.randn(tokens, dim, generator=random), torch.randn(codes, dim, generator=random)
    z1 = z0 + feature_step * torch.randn(tokens, dim, generator=random)
    codebook1 = codebook0 + code_step * torch.randn(codes, dim, generator=random)
    # The features that the probe sees: an offset, added in float32.
    z1 = z0 + (z1 - z0)
    figures = step(z0, codebook0, z1, codebook1)
    assert figures == pytest.approx(reference(*(x.double().numpy() for x in (z0, codebook0, z1, codebook1))), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(codes=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_no_token_breaks_a_bound_where_margins_and_steps_are_equal(codes, seed):
    """Whole numbers on a line: margins of exactly 2δ, and ties, are common."""
    random = torch.Generator().manual_seed(seed)
    z0, z_step = torch.randint(-6, 7, (2, 30, 1), generator=random).float()
    codebook0 = torch.randint(-6, 7, (codes, 1), generator=random).float()
    codebook_step = torch.randint(-1, 2, (codes, 1), generator=random).float()
    assert step(z0, codebook0, z0 + z_step.clamp(-1, 1), codebook0 + codebook_step)["bound_violations"] == 0


def test_a_token_outside_the_papers_margin_switches_when_the_codebook_moves():
    """m = 0.4 and z stands still, so m > 2δ_z; but both codes moved, and only m > 2(δ_z + δ_c) is safe."""
    z, codebook = torch.tensor([[0.3]]), torch.tensor([[0.0], [1.0]])
    figures = step(z, codebook, z, torch.tensor([[-0.5], [0.6]]))
    assert figures["margin_median"] == pytest.approx(0.4)
    assert figures["within_margin_share"] == 0
    assert figures["switched_share_same_codebook"] == 0
    assert figures["switched_share"] == figures["switched_outside_margin_share"] == 1
    assert figures["within_joint_margin_share"] == 1
    assert figures["bound_violations"] == 0


def test_the_margins_cannot_be_smaller():
    """Just inside either margin a token can switch, just outside it does not."""
    codebook = torch.tensor([[0.0], [1.0]])
    for z, switches in ((0.41, 1.0), (0.39, 0.0)):  # m = 1 - 2z; a step of 0.1 allows 0.2
        figures = step(torch.tensor([[z]]), codebook, torch.tensor([[z + 0.1]]), codebook)
        assert figures["switched_share_same_codebook"] == figures["within_margin_share"] == switches
        moved = torch.tensor([[-0.05], [0.95]])
        joint = step(torch.tensor([[z - 0.05]]), codebook, torch.tensor([[z + 0.05]]), moved)
        assert joint["switched_share"] == joint["within_joint_margin_share"] == switches


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 20),
    codes=st.integers(2, 40),
    copies=st.integers(1, 2),
    scores=st.sampled_from([1, 64, 10**6]),
    seed=st.integers(0, 2**32),
)
def test_the_two_nearest_in_tiles(tokens, codes, copies, scores, seed):
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, 3, generator=random)
    # Far from the origin, where |z|² - 2ze + |e|² cancels in float32; each code perhaps twice.
    codebook = torch.randn(codes, 3, generator=random).repeat(copies, 1) + 1000
    z += 1000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stability, "_SCORES", scores)
        patch.setattr(stability, "_DIFFERENCES", scores)
        found = two_nearest(z, codebook, nearest_code(z, codebook))
    expected = np.sort(distances(z.double().numpy(), codebook.double().numpy()), axis=1)[:, :2].T
    for each, wanted in zip(found, expected, strict=True):
        assert each.dtype == torch.float64
        np.testing.assert_allclose(each.numpy(), wanted, rtol=1e-12)


def descend(model, optimizer):
    reconstruction, quantized = model(IMAGES)
    optimizer.zero_grad()
    ((reconstruction - IMAGES).square().mean() + quantized.loss).backward()
    optimizer.step()


@torch.no_grad()
def features_and_codes(model):
    """float64 (N, 8) and (K, 8)"""
    z, codes = model.to_codes(model.encoder(IMAGES)), model.quantizer.mapped_codebook()
    return z.movedim(1, -1).reshape(-1, 8).double().numpy(), codes.double().numpy()


@pytest.mark.parametrize("quantizer", ["vq", "linear", "fvq"])
def test_a_real_step(quantizer):
    model = tokenizer(quantizer).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    probe = StabilityProbe(model, IMAGES)
    probe.before()
    old_z, old_codes = (
        model.to_codes(model.encoder(IMAGES)).detach(),
        model.quantizer.mapped_codebook().detach().clone(),
    )
    descend(model, optimizer)
    figures = probe.after()
    new_z, new_codes = model.to_codes(model.encoder(IMAGES)).detach(), model.quantizer.mapped_codebook().detach()
    rows = [z.movedim(1, -1).reshape(-1, 8).double().numpy() for z in (old_z, new_z)]
    expected = reference(rows[0], old_codes.double().numpy(), rows[1], new_codes.double().numpy())
    assert figures == pytest.approx(expected, rel=1e-5)
    assert figures["code_displacement"] > 0
    assert figures["feature_displacement"] > 0
    assert 0 < figures["within_margin_share"] <= figures["within_joint_margin_share"] <= 1


def test_the_probe_leaves_the_training_alone():
    trained = []
    for probed in (False, True):
        model = tokenizer("fvq").train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        probe = StabilityProbe(model, IMAGES[:2])
        torch.manual_seed(0)
        for _ in range(3):
            if probed:
                probe.before()
            descend(model, optimizer)
            gradients = [parameter.grad.clone() for parameter in model.parameters()]
            if probed:
                probe.after()
            assert all(torch.equal(p.grad, kept) for p, kept in zip(model.parameters(), gradients, strict=True))
        assert all(module.training for module in model.modules())
        trained.append((model.state_dict(), torch.rand(3)))
    assert all(torch.equal(tensor, trained[1][0][name]) for name, tensor in trained[0][0].items())
    assert torch.equal(trained[0][1], trained[1][1])


def test_autocast_does_not_matter():
    model = tokenizer("fvq")
    probe = StabilityProbe(model, IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probe.before()
    assert probe.after()["feature_displacement_max"] == 0


def test_a_step_that_changes_nothing():
    torch.manual_seed(0)
    probe = StabilityProbe(Tokenizer(config("fvq")), IMAGES)  # all codes lie at the origin
    probe.before()
    figures = probe.after()
    assert figures.pop("within_margin_share") == figures.pop("within_joint_margin_share") == 1
    assert set(figures.values()) == {0.0}


def test_refusals():
    model = tokenizer("vq")
    probe = StabilityProbe(model, IMAGES)
    with pytest.raises(ValueError, match=r"after\(\) needs a call of before\(\)"):
        probe.after()
    probe.before()
    probe.after()
    with pytest.raises(ValueError, match=r"after\(\) needs a call of before\(\)"):
        probe.after()
    with pytest.raises(ValueError, match="at least 2 codes, not 1"):
        StabilityProbe(SimpleNamespace(quantizer=CodebookQuantizer(1, 2, nn.Identity())), IMAGES)
    model.quantizer = FiniteScalarQuantizer(25, 2, levels=(5, 5))
    with pytest.raises(ValueError, match=r"mapped codes \(CodebookQuantizer\), not FiniteScalarQuantizer"):
        StabilityProbe(model, IMAGES)
