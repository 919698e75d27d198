"""The Inception network against torch-fidelity's and pytorch-fid's, on the same random weights."""

import hashlib
from dataclasses import replace

import pytest
import pytorch_fid.inception
import torch
from float32 import flags_within
from random_inception import photo_crops, write_weights
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from fvq.evaluate.networks.extractors import EXTRACTORS, load_extractor, save_reference
from fvq.evaluate.networks.inception import Inception2015, resize_tensorflow
from fvq.evaluate.networks.pretrained import PUBLISHED, PretrainedFile
from fvq.evaluate.protocol_networks import load_network
from fvq.evaluate.protocols import PROTOCOLS, check_resizing
from fvq.runtime.errors import UserError

SIZES = [(32, 32), (256, 256), (299, 299), (40, 700), (301, 17)]
TOLERANCE = 1e-6  # of the norm; that of two orders of summation in float32


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="module")
def network(weights):
    return Inception2015(weights)


@pytest.fixture(scope="module")
def half_pixel_network(weights):
    return Inception2015(weights, "pytorch")


@pytest.fixture(scope="module")
def pytorch_fids(weights):
    """pytorch-fid's own, which resizes and scales by itself."""
    state = torch.load(weights, weights_only=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state)
        return pytorch_fid.inception.InceptionV3([3]).eval()


@pytest.fixture(scope="module")
def plain(weights):
    """torch-fidelity's own."""
    return FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """By the norm of each image's row; rows differ, so that a network which sees nothing does not pass."""
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert ((found - expected).norm(dim=1) <= tolerance * expected.norm(dim=1)).all()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_features_and_logits_are_torch_fidelitys(network, plain, height, width):
    images = photo_crops(2, height, width, seed=height)
    outputs, (features, logits) = network(images), plain(images)
    assert_near(outputs.features, features)
    assert_near(outputs.logits, logits)
    assert outputs.spatial is None
    assert (features[0] - features[1]).norm() > 1e-2 * features.norm(), "the network tells images apart"
    assert outputs.features.shape == (2, network.feature_dimension) and outputs.logits.shape == (2, network.classes)


def test_the_bias_of_the_classes_is_left_out(network, plain, weights):
    """The weights have one, and ADM and torch-fidelity score without it."""
    images = photo_crops(1, 64, 64, seed=0)
    bias_c = torch.load(weights, weights_only=True)["fc.bias"]
    biased = FeatureExtractorInceptionV3("inception-v3-compat", ["logits"], feature_extractor_weights_path=str(weights))
    assert_near(network(images).logits + bias_c, biased(images)[0])
    assert bias_c.norm() > 1


@pytest.mark.parametrize(("height", "width"), [*SIZES, (1, 1), (598, 598)])
@pytest.mark.parametrize("side", [299, 224])
def test_resizing_is_torch_fidelitys_to_the_bit(height, width, side):
    images = torch.randint(
        0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height)
    )
    expected = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(side, side), align_corners=False)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(resize_tensorflow(images.contiguous(memory_format=layout), side), expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resized_as_pytorch_fid_does_features_are_pytorch_fids(half_pixel_network, pytorch_fids, height, width):
    images = photo_crops(2, height, width, seed=height)
    with torch.no_grad():
        expected = pytorch_fids(images / 255)[0].flatten(1)
    assert_near(half_pixel_network(images).features, expected)


def test_the_two_ways_to_resize_differ_and_say_so(weights, network, half_pixel_network):
    other, images = half_pixel_network, photo_crops(1, 64, 64, seed=1)
    difference = (other(images).features - network(images).features).norm()
    assert difference > 1e-4 * network(images).features.norm()
    assert network.resize != other.resize and "half-pixel" in other.resize
    assert network.weights_sha256 == other.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_spatial_features_are_the_first_7_channels_place_by_place(network, plain):
    """ADM's ``mixed_6/conv``, flattened from TensorFlow's (N, 17, 17, 7)."""
    found = {}
    hook = plain.Mixed_6d.branch1x1.register_forward_hook(lambda *call: found.update(map=call[2]))
    images = photo_crops(3, 64, 48, seed=2)
    features, _ = plain(images)
    hook.remove()
    expected = found["map"].movedim(1, -1)[..., :7].reshape(3, -1)
    outputs = network(images, spatial=True)
    assert expected.shape == (3, 2023) == (3, network.spatial_dimension)
    assert_near(outputs.spatial, expected, 1e-5)  # of single places: the rounding of either is some 3e-6
    assert_near(outputs.features, features)
    assert torch.equal(outputs.features, network(images).features)


def test_features_do_not_depend_on_the_batch_to_the_bit(weights):
    """Of one network after another batch, and of one that saw no other."""
    images, network = photo_crops(5, 64, 64, seed=3), Inception2015(weights)
    alone = [network(image[None], spatial=True) for image in images]
    together = Inception2015(weights)(images, spatial=True)
    for later in (together, network(images, spatial=True)):
        assert torch.equal(torch.cat([outputs.features for outputs in alone]), later.features)
        assert torch.equal(torch.cat([outputs.spatial for outputs in alone]), later.spatial)
        torch.testing.assert_close(torch.cat([outputs.logits for outputs in alone]), later.logits)
    assert torch.equal(together.features, network(images.contiguous(memory_format=torch.channels_last)).features)


def test_without_torchs_own_convolution_features_are_the_same(weights, plain, monkeypatch):
    """What other processors and versions of torch run."""
    monkeypatch.setattr("fvq.evaluate.networks.inception._pack", None)
    images = photo_crops(2, 64, 64, seed=4)
    outputs = Inception2015(weights)(images)
    for found, expected in zip(outputs[:2], plain(images), strict=True):
        assert_near(found, expected)


def test_weights_without_a_network_are_refused(tmp_path, weights):
    state = torch.load(weights, weights_only=True)
    del state["fc.weight"]
    torch.save(state, tmp_path / "headless.pth")
    (tmp_path / "text.pth").write_bytes(b"half a download")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "half.pth").write_bytes(weights.read_bytes()[:1_000_000])
    for name in ("headless", "text", "empty", "list", "half"):
        with pytest.raises(UserError, match=rf"{name}\.pth: holds no weights of this network"):
            Inception2015(tmp_path / f"{name}.pth")


def test_float32_is_not_rounded_whatever_the_caller_allows(network):
    images = photo_crops(1, 64, 64, seed=5)
    assert flags_within(lambda: network(images, spatial=True)) == ({False}, {"ieee"})


@pytest.fixture
def published(weights, monkeypatch) -> PretrainedFile:
    """The random weights in place of the published ones."""
    file = PretrainedFile(weights.name, hashlib.sha256(weights.read_bytes()).hexdigest(), weights.stat().st_size)
    monkeypatch.setitem(EXTRACTORS, "inception-2015", replace(EXTRACTORS["inception-2015"], files=(file,)))
    monkeypatch.setitem(PUBLISHED, "inception-2015", (file,))
    return file


def test_it_is_found_by_its_file_or_a_reference_and_resizes_as_it_is_told(weights, published, tmp_path):
    save_reference(weights, tmp_path / "extractor.safetensors")
    for name, place in (("inception-2015", weights), (tmp_path / "extractor.safetensors", None)):
        plain, other = load_extractor(name, place), load_extractor(name, place, resize="pytorch")
        assert plain.name == other.name == "inception-2015" and other.weights_sha256 == published.sha256
        assert "TensorFlow 1" in plain.resize and "half-pixel" in other.resize


def test_a_protocol_has_its_resizing(weights, published):
    adm, pytorch = (PROTOCOLS[name] for name in ("adm", "pytorch-fid"))
    assert "TensorFlow 1" in load_network("inception-2015", adm, weights=weights).resize
    half_pixel = load_network("inception-2015", pytorch, weights=weights)
    assert "half-pixel" in half_pixel.resize
    check_resizing(half_pixel.resize, pytorch)
    with pytest.raises(UserError, match=r"the protocol adm has Inception's images resized .* TensorFlow 1"):
        check_resizing(half_pixel.resize, adm)
    check_resizing("bicubic to 224 pixels", adm)  # of another network


def test_other_weights_are_refused(weights):
    with pytest.raises(UserError, match=r"weights\.pth: SHA-256 is "):
        load_extractor("inception-2015", weights)


def test_a_reference_to_published_weights_is_followed_and_checked(tmp_path):
    published = tmp_path / "weights.pth"
    published.write_bytes(b"not the published bytes")
    reference = tmp_path / "extractor.safetensors"
    save_reference(published, reference)
    with pytest.raises(UserError, match=r"weights\.pth: SHA-256 is"):
        load_extractor(reference)
    published.unlink()
    with pytest.raises(UserError, match=r"train_extractor\.weights: .*weights\.pth: no such file"):
        load_extractor(reference)
