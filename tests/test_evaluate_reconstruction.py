"""Reconstruction error against scikit-image and the lpips package's own way of loading its trunk."""

import hashlib
import math
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fvq.evaluate.pretrained import ALEXNET_FILE, PretrainedFile
from fvq.evaluate.reconstruction import load_lpips_alex, mse, psnr_rgb, reconstruction_errors, ssim_g11
from fvq.runtime.errors import UserError


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Five 64x64 crops of a photograph, and the same with noise of growing strength."""
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)
    original = torch.stack([photo[:, 60 * i : 60 * i + 64, 70 * i : 70 * i + 64] for i in range(5)])
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6).view(
        5, 1, 1, 1
    )
    return original, (original + 4 * noise).clamp(0, 255).to(torch.uint8)


def as_numpy(images: torch.Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).numpy())


def test_each_image_agrees_with_scikit_image(pair):
    errors = reconstruction_errors(*pair, lpips_alex=None, batch_size=2)
    assert set(errors) == {"mse", "psnr_rgb", "ssim_g11"}
    for index, (original, reconstruction) in enumerate(zip(*map(as_numpy, pair), strict=True)):
        assert errors["psnr_rgb"][index] == pytest.approx(
            peak_signal_noise_ratio(original, reconstruction, data_range=255), rel=1e-9
        )
        expected = structural_similarity(
            original,
            reconstruction,
            data_range=255,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert errors["ssim_g11"][index] == pytest.approx(expected, abs=1e-5)
        difference = original / 255 - reconstruction / 255
        assert errors["mse"][index] == pytest.approx((difference**2).mean(), rel=1e-9)


def test_ssim_of_flat_images_is_their_luminance_term():
    levels = torch.tensor([[0, 255], [255, 254], [20, 30]])
    original, reconstruction = (levels[:, i].byte().view(3, 1, 1, 1).expand(3, 3, 12, 16) for i in (0, 1))
    c1 = (0.01 * 255) ** 2
    expected = (2 * levels.prod(1) + c1) / (levels.square().sum(1) + c1)
    assert ssim_g11(original, reconstruction).numpy() == pytest.approx(expected.numpy(), rel=1e-4)


def test_exact_images_have_finite_figures(pair):
    original, _ = pair
    one_off = original.clone()
    one_off[:, 0, 0, 0] ^= 1
    assert torch.equal(psnr_rgb(original, original), psnr_rgb(original, one_off))
    assert psnr_rgb(original, original)[0] == pytest.approx(10 * math.log10(255**2 * 3 * 64 * 64))
    assert ssim_g11(original, original) == pytest.approx(1)
    assert not mse(original, original).any()


def test_refusals(pair):
    original, reconstruction = pair
    with pytest.raises(UserError, match=r"reconstructions: .*uint8, not float32"):
        reconstruction_errors(original, reconstruction.float(), lpips_alex=None)
    with pytest.raises(UserError, match="have the shape"):
        reconstruction_errors(original, reconstruction[:4], lpips_alex=None)
    with pytest.raises(UserError, match="at least 11x11 pixels, not 8x64"):
        reconstruction_errors(original[:, :, :8], reconstruction[:, :, :8], lpips_alex=None)


@pytest.fixture(scope="module")
def random_trunk(tmp_path_factory) -> tuple[Path, PretrainedFile, torch.nn.Module]:
    """A file like torchvision's, with random weights, under the published name and its own hash; and the network."""
    torch.manual_seed(0)
    network = torchvision.models.alexnet(weights=None, num_classes=2)
    path = tmp_path_factory.mktemp("weights") / ALEXNET_FILE.name
    torch.save({k: v for k, v in network.state_dict().items() if k.startswith("features.")}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, PretrainedFile(ALEXNET_FILE.name, digest[:8], path.stat().st_size), network


def test_lpips_loads_the_trunk_as_the_package_does(pair, random_trunk, monkeypatch):
    path, file, network = random_trunk
    ours = load_lpips_alex(path, file=file)
    monkeypatch.setattr("lpips.pretrained_networks.tv.alexnet", lambda pretrained: network)
    published = lpips.LPIPS(net="alex", verbose=False)
    original, reconstruction = pair
    with torch.inference_mode():
        expected = published(original / 255, reconstruction / 255, normalize=True).flatten()
    assert (expected > 0).all()
    assert ours(original, reconstruction).numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert reconstruction_errors(*pair, lpips_alex=ours)["lpips_alex"].numpy() == pytest.approx(
        expected.numpy(), rel=1e-4
    )


def test_lpips_finds_its_weights_or_says_that_they_are_absent(random_trunk, monkeypatch, tmp_path):
    path, file, _ = random_trunk
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    assert load_lpips_alex(file=file) is None
    monkeypatch.setenv("FVQ_WEIGHTS", str(path.parent))
    assert load_lpips_alex(file=file) is not None
    with pytest.raises(UserError, match=r"SHA-256 is .* begins with 7be5be79"):
        load_lpips_alex()
    with pytest.raises(UserError, match=r"evaluate_tokenizer\.lpips_weights: .*nowhere\.pth: no such file"):
        load_lpips_alex(tmp_path / "nowhere.pth")


def test_lpips_refuses_weights_of_something_else(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"layer": torch.zeros(2)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="holds no weights of the LPIPS trunk alex"):
        load_lpips_alex(path, file=PretrainedFile("other.pth", digest, path.stat().st_size))
