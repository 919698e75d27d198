"""Reconstruction error against scikit-image, the lpips package and the formulas of the libraries that papers use."""

import hashlib
import math
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from float32 import flags_within
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import avg_pool2d, conv2d

from fvq.data.image_table import to_model_range, to_uint8
from fvq.evaluate.networks import lpips_network
from fvq.evaluate.networks.pretrained import PretrainedFile
from fvq.evaluate.reconstruction import (
    LPIPS_TRUNKS,
    MEASURES,
    build_measures,
    measure_batch,
    mse,
    psnr_rgb,
    psnr_y,
)
from fvq.evaluate.ssim import ssim_g11, ssim_g11_dr2, ssim_u7
from fvq.runtime.errors import UserError

LPIPS = ("lpips_alex", "lpips_vgg")
PLAIN = [name for name in MEASURES if name not in LPIPS]


def noisy(images: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Five crops of a photograph, 64x72 pixels, and the same with noise of growing strength."""
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)
    original = torch.stack([photo[:, 60 * i : 60 * i + 64, 70 * i : 70 * i + 72] for i in range(5)])
    return original, torch.stack([noisy(image, 4 * i) for i, image in enumerate(original, start=1)])


def hard_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Images in which variances are small differences of large numbers: white, black, halves, and noise over all."""
    original = torch.full((5, 3, 40, 33), 255, dtype=torch.uint8)
    original[1] = 0
    original[2, :, 20:] = 0
    original[3] = noisy(original[3], 8)
    original[4] = noisy(original[4] // 2, 200)
    reconstruction = noisy(original, 3)
    reconstruction[3] = noisy(original[0], 5)
    reconstruction[4] = 255 - original[4]
    return original, reconstruction


def measure(names, original, reconstruction) -> dict[str, torch.Tensor]:
    measures, absent = build_measures(names, weights={}, device="cpu")
    assert not absent
    return measure_batch(measures, original, reconstruction)


def as_numpy(images: torch.Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).numpy())


def test_every_name_is_a_measure_or_says_why_not(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    measures, absent = build_measures(tuple(MEASURES), weights=dict.fromkeys(LPIPS), device="cpu")
    assert list(measures) == PLAIN
    assert absent == {
        "lpips_alex": "absent: no alexnet-owt-7be5be79.pth",
        "lpips_vgg": "absent: no vgg16-397923af.pth",
    }


def test_each_image_is_measured_by_itself(pair):
    together = measure(PLAIN, *pair)
    assert list(together) == PLAIN
    for index in range(5):
        alone = measure(PLAIN, pair[0][index : index + 1], pair[1][index : index + 1])
        for name, value in alone.items():
            assert (together[name].dtype, together[name].shape) == (torch.float64, (5,))
            assert value.item() == pytest.approx(together[name][index].item(), rel=1e-12)


@pytest.mark.parametrize("name", ["ssim_g11", "ssim_u7", "ssim_u7_dr2"])
@pytest.mark.parametrize("kind", ["photograph", "hard"])
def test_ssim_agrees_with_scikit_image(pair, name, kind):
    original, reconstruction = pair if kind == "photograph" else hard_pair()
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if "g11" in name else {}
    found = measure([name], original, reconstruction)[name]
    for value, *images in zip(found, as_numpy(original), as_numpy(reconstruction), strict=True):
        if name == "ssim_u7_dr2":  # as LlamaGen calls it
            images = [image / 255 for image in images]
        data_range = 2.0 if name == "ssim_u7_dr2" else 255
        expected = structural_similarity(*images, data_range=data_range, channel_axis=-1, **window)
        assert value.item() == pytest.approx(expected, abs=1e-9)


def piq_ssim(original: torch.Tensor, reconstruction: torch.Tensor, pooled: int) -> torch.Tensor:
    """piq.ssim(data_range=2.) of values from 0 to 1, in float64 with the whole window, pooled as it would be."""
    x, y = (avg_pool2d(images.double() / 255, pooled) / 2 for images in (original, reconstruction))
    squares = (torch.arange(11, dtype=torch.float64) - 5) ** 2
    window = torch.exp(-(squares[:, None] + squares) / (2 * 1.5**2))
    window = (window / window.sum()).expand(x.shape[1], 1, 11, 11)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return conv2d(values, window, groups=values.shape[1])

    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    contrast = (2 * covariance + 0.03**2) / (variances + 0.03**2)
    return (contrast * (2 * mean(x) * mean(y) + 0.01**2) / (mean(x) ** 2 + mean(y) ** 2 + 0.01**2)).mean((1, 2, 3))


@pytest.mark.parametrize("kind", ["photograph", "hard"])
def test_ssim_of_the_released_code_agrees_with_its_formula(pair, kind):
    images = pair if kind == "photograph" else hard_pair()
    assert ssim_g11_dr2(*images).numpy() == pytest.approx(piq_ssim(*images, pooled=1).numpy(), abs=1e-9)


@pytest.mark.parametrize(("side", "pooled"), [(383, 1), (384, 2)])
def test_ssim_of_the_released_code_pools_large_images(side, pooled):
    original = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None, :1, :side, :401]
    grey = original, noisy(original, 20)
    found = ssim_g11_dr2(*(images.expand(-1, 3, -1, -1) for images in grey))
    assert found.numpy() == pytest.approx(piq_ssim(*grey, pooled=pooled).numpy(), abs=1e-9)


def test_a_doubled_data_range_lifts_ssim(pair):
    found = measure(PLAIN, *pair)
    for window in ("ssim_g11", "ssim_u7"):
        assert (found[f"{window}_dr2"] > found[window] + 0.005).all()


def test_ssim_of_flat_images_is_their_luminance_term():
    levels = torch.tensor([[0, 255], [255, 254], [20, 30]], dtype=torch.float64)
    original, reconstruction = (levels[:, i].byte().view(3, 1, 1, 1).expand(3, 3, 12, 16) for i in (0, 1))
    c1 = (0.01 * 255) ** 2
    expected = (2 * levels.prod(1) + c1) / (levels.square().sum(1) + c1)
    for ssim in (ssim_g11, ssim_u7):
        assert ssim(original, reconstruction).numpy() == pytest.approx(expected.numpy(), rel=1e-9)


def test_mse_and_psnr_agree_with_scikit_image(pair):
    found = measure(["mse", "psnr_rgb"], *pair)
    for index, (original, reconstruction) in enumerate(zip(*map(as_numpy, pair), strict=True)):
        expected = peak_signal_noise_ratio(original, reconstruction, data_range=255)
        assert found["psnr_rgb"][index] == pytest.approx(expected, rel=1e-9)
        difference = original / 255 - reconstruction / 255
        assert found["mse"][index] == pytest.approx((difference**2).mean(), rel=1e-9)


def test_psnr_of_luma_agrees_with_the_released_codes_formula(pair):
    weights = np.array([65.481, 128.553, 24.966])
    for value, *images in zip(psnr_y(*pair), *map(as_numpy, pair), strict=True):
        luma = [((image / 255) @ weights + 16) / 255 for image in images]
        expected = 10 * math.log10(1 / (((luma[0] - luma[1]) ** 2).mean() + 1e-8))
        assert value.item() == pytest.approx(expected, abs=1e-5)


def test_psnr_of_luma_is_larger_by_its_range_alone(pair):
    grey = [images[:, :1].expand(-1, 3, -1, -1) for images in pair]
    gain = psnr_y(*grey) - psnr_rgb(*grey)
    assert 20 * math.log10(255 / 219) == pytest.approx(1.32, abs=0.005)
    # The 1e-8 beside the error takes less than 0.001 dB at 40 dB.
    assert gain.numpy() == pytest.approx(20 * math.log10(255 / 219), abs=1e-3)
    assert (psnr_y(*pair) > psnr_rgb(*pair) + 2).all()  # noise of the colours counts less besides


def test_exact_images_have_finite_figures(pair):
    original, _ = pair
    one_off = original.clone()
    one_off[:, 0, 0, 0] ^= 1
    assert torch.equal(psnr_rgb(original, original), psnr_rgb(original, one_off))
    assert psnr_rgb(original, original)[0] == pytest.approx(10 * math.log10(255**2 * 3 * 64 * 72))
    assert psnr_y(original, original) == pytest.approx(80)
    for name in PLAIN:
        if name.startswith("ssim"):
            assert (measure([name], original, original)[name] == 1).all()
    assert not mse(original, original).any()


def test_rounding_keeps_every_level_and_truncation_does_not():
    levels = torch.arange(256, dtype=torch.uint8)
    seen = to_model_range(levels)
    assert torch.equal(to_uint8(seen), levels)
    changed = ((seen + 1) / 2 * 255).to(torch.uint8) != levels
    assert changed.sum() == 63  # 24.6 % of the levels, each one too dark
    outputs = torch.linspace(-1, 1, 255 * 1000 + 1)
    exact = (outputs.double() + 1) * 127.5
    assert (to_uint8(outputs) - exact).mean() == pytest.approx(0, abs=1e-3)
    assert (((outputs + 1) / 2 * 255).to(torch.uint8) - exact).mean() == pytest.approx(-0.5, abs=1e-2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda x, y: (x, y.float()), "reconstructions: images must be uint8, not float32"),
        (lambda x, y: (x / 255, y), "originals: images must be uint8, not float32"),
        (lambda x, y: (x[:, :1], y), "originals: images must have the shape (N, 3, height, width), not (5, 1, 64, 72)"),
        (lambda x, y: (x, y[:4]), "reconstructions: 4 images, and the originals are 5"),
        (lambda x, y: (x, y[..., :64]), "reconstructions: images have 64x64 pixels, and the originals 64x72"),
        (lambda x, y: (x[:, :, :10], y[:, :, :10]), "ssim_g11: images must have at least 11x11 pixels, not 10x72"),
    ],
)
def test_batches_that_do_not_fit_are_refused(pair, change, complaint):
    measures, _ = build_measures(PLAIN, weights={}, device="cpu")
    with pytest.raises(UserError) as caught:
        measure_batch(measures, *change(*pair))
    assert str(caught.value) == complaint


def test_images_of_the_windows_size_have_one_position_and_smaller_ones_are_refused(pair):
    for name, side in (("ssim_g11", 11), ("ssim_g11_dr2", 11), ("ssim_u7", 7), ("ssim_u7_dr2", 7)):
        assert measure([name], *(images[..., :side, :side] for images in pair))[name].isfinite().all()
        with pytest.raises(UserError, match=f"^{name}: .* at least {side}x{side} pixels, not {side}x{side - 1}$"):
            measure([name], *(images[..., :side, : side - 1] for images in pair))


def test_unknown_measures_are_refused():
    with pytest.raises(UserError, match=r"^ssim: no such measure; there are mse, psnr_rgb, .*, lpips_vgg$"):
        build_measures(["mse", "ssim"], weights={}, device="cpu")
    with pytest.raises(UserError, match=r"^lpips: a measure without weights; lpips_alex and lpips_vgg have them$"):
        build_measures(["mse"], weights={"lpips": "vgg.pth"}, device="cpu")


@pytest.fixture(scope="module")
def random_trunks(tmp_path_factory) -> tuple[Path, dict[str, PretrainedFile], dict[str, torch.nn.Module]]:
    """A folder of files like torchvision's with random weights and hashes of their own; the files; the networks."""
    folder = tmp_path_factory.mktemp("weights")
    files, networks = {}, {}
    for trunk, known in LPIPS_TRUNKS.values():
        torch.manual_seed(0)
        build = torchvision.models.alexnet if trunk == "alex" else torchvision.models.vgg16
        networks[trunk] = build(weights=None)
        state = networks[trunk].state_dict()
        path = folder / known.name
        torch.save({name: value for name, value in state.items() if name.startswith("features.")}, path)
        files[trunk] = PretrainedFile(known.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    return folder, files, networks


@pytest.fixture
def trunks(random_trunks, monkeypatch) -> tuple[Path, dict[str, torch.nn.Module]]:
    """The random trunks in place of the published ones."""
    folder, files, networks = random_trunks
    for trunk, file in files.items():
        monkeypatch.setitem(LPIPS_TRUNKS, f"lpips_{trunk}", (trunk, file))
    return folder, networks


def test_lpips_is_the_packages_own_on_the_same_trunk(pair, trunks, monkeypatch):
    folder, networks = trunks
    monkeypatch.setattr(lpips_network, "_STEP_PIXELS", 2 * 64 * 72)  # five images in three steps
    measures, absent = build_measures(LPIPS, weights=dict.fromkeys(LPIPS, folder), device="cpu")
    assert not absent
    found = measure_batch(measures, *pair)
    monkeypatch.setattr("lpips.pretrained_networks.tv.alexnet", lambda pretrained: networks["alex"])
    monkeypatch.setattr("lpips.pretrained_networks.tv.vgg16", lambda pretrained: networks["vgg"])
    original, reconstruction = pair
    for trunk in ("alex", "vgg"):
        published = lpips.LPIPS(net=trunk, verbose=False)
        with torch.inference_mode():
            expected = published(original / 255, reconstruction / 255, normalize=True).flatten()
        assert (expected > 0).all()
        assert found[f"lpips_{trunk}"].dtype == torch.float64
        assert found[f"lpips_{trunk}"].numpy() == pytest.approx(expected.numpy(), rel=1e-4)


@pytest.mark.parametrize(("name", "side"), [("lpips_alex", 31), ("lpips_vgg", 16)])
def test_lpips_takes_images_down_to_its_trunks_least_size(pair, trunks, name, side):
    measures, _ = build_measures([name], weights={name: trunks[0]}, device="cpu")
    assert (measure_batch(measures, *(images[..., :side, :side] for images in pair))[name] > 0).all()
    smaller = [images[..., : side - 1, :side] for images in pair]
    with pytest.raises(UserError, match=f"^{name}: .* at least {side}x{side} pixels, not {side - 1}x{side}$"):
        measure_batch(measures, *smaller)
    with pytest.raises(RuntimeError):  # the network itself could not
        measures[name](*smaller)


@pytest.mark.parametrize("name", LPIPS)
def test_lpips_is_not_rounded_whatever_the_caller_allows(pair, trunks, name):
    measures, _ = build_measures([name], weights={name: trunks[0]}, device="cpu")
    assert flags_within(lambda: measure_batch(measures, *pair))[0] == {False}


def test_lpips_finds_its_weights(trunks, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("FVQ_WEIGHTS", str(trunks[0]))
    measures, absent = build_measures(["lpips_alex"], weights={}, device="cpu")
    assert (list(measures), absent) == (["lpips_alex"], {})
    with pytest.raises(UserError, match=r"^weights of lpips_alex: .*nowhere\.pth: no such file$"):
        build_measures(["lpips_alex"], weights={"lpips_alex": tmp_path / "nowhere.pth"}, device="cpu")


def test_lpips_refuses_another_file(random_trunks, monkeypatch):
    monkeypatch.setenv("FVQ_WEIGHTS", str(random_trunks[0]))
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79\.pth: SHA-256 is .* of the weights is 7be5be79"):
        build_measures(["lpips_alex"], weights={}, device="cpu")


def test_lpips_refuses_weights_of_something_else(tmp_path, monkeypatch):
    path = tmp_path / "other.pth"
    torch.save({"layer": torch.zeros(2)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = PretrainedFile("other.pth", digest, path.stat().st_size)
    monkeypatch.setitem(LPIPS_TRUNKS, "lpips_alex", ("alex", file))
    with pytest.raises(UserError, match=r"other\.pth: holds no weights of the LPIPS trunk alex"):
        build_measures(["lpips_alex"], weights={"lpips_alex": path}, device="cpu")
