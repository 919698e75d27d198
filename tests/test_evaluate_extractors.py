"""The networks of the registry against other implementations of them, and other packages' extractors."""

import hashlib
import importlib
import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_vgg16
import torchvision
from float32 import flags_within
from PIL import Image
from skimage import data
from torch import nn

from fvq.evaluate.networks.classifier import ImageClassifier, ImageClassifierConfig
from fvq.evaluate.networks.dinov2 import DINOv2, VisionTransformer, load_dinov2
from fvq.evaluate.networks.extractors import EXTRACTORS, find_extractor, load_extractor, plug_in_names
from fvq.evaluate.networks.pretrained import PUBLISHED, PretrainedFile
from fvq.evaluate.networks.squeezenet import SqueezeNet1_0, load_squeezenet1_0
from fvq.evaluate.networks.vgg16 import VGG16, load_vgg16
from fvq.evaluate.protocol_networks import load_network_of_neighbours
from fvq.evaluate.protocols import PROTOCOLS
from fvq.runtime.errors import UserError

ASSETS = Path(os.environ.get("FVQ_TEST_ASSETS", Path(__file__).parents[2] / "shared"))
SQUEEZENET = ASSETS / "weights" / "squeezenet1_0-imagenet.safetensors"
real_weights = pytest.mark.skipif(not SQUEEZENET.is_file(), reason=f"{SQUEEZENET} is not there")


def photo(name: str = "astronaut", height: int = 90, width: int = 130) -> torch.Tensor:
    """The middle of a photograph, uint8 (1, 3, height, width)."""
    image = Image.fromarray(getattr(data, name)())
    image = image.resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def randomly(network: nn.Module) -> nn.Module:
    """Weights that keep the size of the activations, in place of those that torch draws in seconds or not at all."""
    network = network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            bound = (6 / parameter[0].numel()) ** 0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        else:
            middle = 0.0 if name.endswith("bias") else 1.0
            nn.init.uniform_(parameter, middle - 0.2, middle + 0.2, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vgg() -> torchvision.models.VGG:
    with torch.device("meta"):
        network = torchvision.models.vgg16()
    return randomly(network)


@pytest.fixture(scope="module")
def transformer() -> VisionTransformer:
    network = VisionTransformer(width=24, depth=2, heads=3, patch=14, grid=5)
    randomly(network)
    nn.init.uniform_(network.pos_embed, -1, 1, generator=torch.Generator().manual_seed(1))
    return network


@pytest.fixture(scope="module", params=["vgg16", "squeezenet1_0", "squeezenet1_0, caffe", "dinov2-vit-l14"])
def extractor(request, vgg, transformer):
    if request.param == "vgg16":
        return VGG16(vgg, "0" * 64)
    if request.param == "dinov2-vit-l14":
        return DINOv2(transformer, "0" * 64)
    network = randomly(torchvision.models.squeezenet1_0())
    return SqueezeNet1_0(network, "0" * 64, caffe=request.param.endswith("caffe"))


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert found.dtype == torch.float32 and expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


# What all of them must do


def test_outputs_have_the_promised_shapes_and_each_image_has_its_own(extractor):
    images = torch.cat([photo(), photo("chelsea")])
    together = extractor(images, spatial=True)
    assert together.features.shape == (2, extractor.feature_dimension) and together.spatial is None
    assert extractor.spatial_dimension == 0
    alone = extractor(images[1:])
    assert_close(alone.features, together.features[1:])
    assert (together.features[0] - together.features[1]).abs().max() > 0.1 * together.features.abs().max()
    if together.logits is None:
        assert extractor.classes == 0
    else:
        assert together.logits.shape == (2, extractor.classes)
        assert_close(alone.logits, together.logits[1:])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 40)])
def test_small_and_oblong_images_are_enlarged(extractor, height, width):
    features = extractor(photo(height=height, width=width)).features
    assert features.isfinite().all() and features.std() > 0


def test_other_types_and_shapes_are_refused_by_name(extractor):
    images = photo()
    with pytest.raises(UserError, match=rf"extractor {extractor.name}: images must be uint8, not float32"):
        extractor(images.float() * torch.nan)
    with pytest.raises(UserError, match=rf"extractor {extractor.name}: images must have the shape"):
        extractor(images[:, :1])
    with pytest.raises(UserError, match=rf"extractor {extractor.name}: images must have the shape"):
        extractor(images[0])


def test_only_inception_may_be_called_so(extractor):
    assert not extractor.name.startswith(("fid", "inception"))
    assert EXTRACTORS[extractor.name].name == extractor.name


def test_float32_is_not_rounded_whatever_the_caller_allows(extractor):
    convolutions, products = flags_within(lambda: extractor(photo()))
    assert convolutions == {False} and products <= {"ieee"}
    assert products or extractor.name == "squeezenet1_0", "which has convolutions alone"


def test_the_classifier_rounds_in_training_alone():
    classifier = ImageClassifier(ImageClassifierConfig(name="photos", image_size=16, classes=3, width=8))
    images = photo(height=16, width=16)
    assert flags_within(lambda: classifier.eval()(images)) == ({False}, {"ieee"})
    convolutions, products = flags_within(lambda: classifier.train()(images))
    assert convolutions == {True} and "ieee" not in products


# Each against another implementation


def test_vgg16_agrees_with_torch_fidelity(vgg, monkeypatch):
    with torch.device("meta"):
        other_vgg = torchvision.models.vgg16()
    other_vgg.load_state_dict(vgg.state_dict(), assign=True)  # torch-fidelity cuts layers off the one it gets
    monkeypatch.setattr(
        torch_fidelity.feature_extractor_vgg16, "torchvision_load_pretrained_vgg16", lambda **_: other_vgg
    )
    other = torch_fidelity.feature_extractor_vgg16.FeatureExtractorVGG16("vgg16", ["fc2_relu"])
    images = photo(height=300, width=130)
    outputs = VGG16(vgg, "0" * 64)(images)
    assert_close(outputs.features, other(images)[0], 1e-5)
    assert_close(
        outputs.logits, nn.functional.linear(other(images)[0], vgg.classifier[6].weight, vgg.classifier[6].bias)
    )


@pytest.mark.parametrize("caffe", [False, True])
def test_squeezenet_agrees_with_torchvision(caffe):
    network = randomly(torchvision.models.squeezenet1_0())
    images = photo(height=300, width=260)
    resize = torchvision.transforms.Resize(
        (224, 224), torchvision.transforms.InterpolationMode.BILINEAR, antialias=True
    )
    red, green, blue = resize(images.float())[0]
    if caffe:
        scaled = torch.stack([blue - 104, green - 117, red - 123])[None]
    else:
        scaled = torch.stack([red / 255 - 0.485, green / 255 - 0.456, blue / 255 - 0.406])[None]
        scaled /= torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    seen = []
    network.features[12].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    expected_logits = network(scaled)
    outputs = SqueezeNet1_0(network, "0" * 64, caffe=caffe)(images)
    assert_close(outputs.features, seen[0].mean((2, 3)), 1e-5)
    assert_close(outputs.logits, expected_logits, 1e-5)


@real_weights
def test_squeezenet_with_its_authors_weights_knows_what_it_sees():
    extractor = load_extractor("squeezenet1_0", SQUEEZENET.parent)
    assert extractor.weights_sha256 == hashlib.sha256(SQUEEZENET.read_bytes()).hexdigest()
    assert extractor.feature_dimension == EXTRACTORS["squeezenet1_0"].feature_dimension == 512
    cat, cup = (extractor(photo(name, 224, 224)).logits[0].topk(3).indices.tolist() for name in ("chelsea", "coffee"))
    assert set(cat) & {281, 282, 283, 284, 285}, "ImageNet's domestic cats"
    assert set(cup) & {504, 967, 968}, "coffee mug, espresso, cup"


def resampled(grid: np.ndarray, size: int) -> np.ndarray:
    """Positions (n, n, d) at size x size places by cubic convolution (a = -0.75), its step n / (size + 0.1)."""

    def weight(t: float) -> float:
        a, t = -0.75, abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    n = len(grid)
    matrix = np.zeros((size, n))
    for place in range(size):
        source = (place + 0.5) * n / (size + 0.1) - 0.5
        first = int(np.floor(source)) - 1
        for index in range(first, first + 4):
            matrix[place, min(max(index, 0), n - 1)] += weight(source - index)
    return np.einsum("ai,bj,ijd->abd", matrix, matrix, grid)


@pytest.mark.parametrize("size", [3, 5, 8])
def test_the_transformer_agrees_with_torchvisions(transformer, size):
    state = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    other = torchvision.models.VisionTransformer(
        image_size=14 * size, patch_size=14, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=96
    ).eval()
    other.heads = nn.Identity()
    positions = state["pos_embed"]
    if size != 5:
        grid = resampled(positions[0, 1:].reshape(5, 5, 24).double().numpy(), size).reshape(1, -1, 24)
        positions = torch.cat([positions[:, :1], torch.from_numpy(grid).float()], dim=1)
    mapped = {
        "class_token": state["cls_token"],
        "conv_proj.weight": state["patch_embed.proj.weight"],
        "conv_proj.bias": state["patch_embed.proj.bias"],
        "encoder.pos_embedding": positions,
        "encoder.ln.weight": state["norm.weight"],
        "encoder.ln.bias": state["norm.bias"],
    }
    for index in range(2):
        ours, theirs = f"blocks.{index}.", f"encoder.layers.encoder_layer_{index}."
        for kind in ("weight", "bias"):
            # torchvision has no LayerScale; it scales the rows of the matrix before it.
            first, second = (state[f"{ours}ls{i}.gamma"].view(-1, *([1] if kind == "weight" else [])) for i in (1, 2))
            mapped |= {
                f"{theirs}ln_1.{kind}": state[f"{ours}norm1.{kind}"],
                f"{theirs}self_attention.in_proj_{kind}": state[f"{ours}attn.qkv.{kind}"],
                f"{theirs}self_attention.out_proj.{kind}": first * state[f"{ours}attn.proj.{kind}"],
                f"{theirs}ln_2.{kind}": state[f"{ours}norm2.{kind}"],
                f"{theirs}mlp.0.{kind}": state[f"{ours}mlp.fc1.{kind}"],
                f"{theirs}mlp.3.{kind}": second * state[f"{ours}mlp.fc2.{kind}"],
            }
    other.load_state_dict(mapped)
    x = torch.randn(2, 3, 14 * size, 14 * size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert_close(transformer(x), other(x), 1e-5)


def test_dinov2_takes_images_as_dgm_eval_does(transformer):
    images = photo(height=300, width=130)
    their_transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize((224, 224), torchvision.transforms.InterpolationMode.BICUBIC),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    theirs = their_transform(Image.fromarray(images[0].permute(1, 2, 0).numpy()))[None]
    with torch.inference_mode():
        assert_close(DINOv2(transformer, "0" * 64)(images).features, transformer(theirs), 1e-6)


# Files of weights


def published_dinov2() -> dict[str, tuple[int, ...]]:
    """Names and shapes in dinov2_vitl14_pretrain.pth."""
    width = 1024
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1370, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for index in range(24):
        for name, size in (("attn.qkv", (3, 1)), ("attn.proj", (1, 1)), ("mlp.fc1", (4, 1)), ("mlp.fc2", (1, 4))):
            shapes[f"blocks.{index}.{name}.weight"] = (size[0] * width, size[1] * width)
            shapes[f"blocks.{index}.{name}.bias"] = (size[0] * width,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{index}.{name}"] = (width,)
    return shapes


def write_constants(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A state dict of these shapes that takes a few bytes a tensor on the disk."""
    torch.save({name: torch.full((1,), 0.01).expand(shape) for name, shape in shapes.items()}, path)


def test_dinov2_loads_a_file_of_the_published_names_and_no_other(tmp_path):
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    shapes = published_dinov2()
    assert len(shapes) == 343
    write_constants(path, shapes)
    extractor = load_dinov2(path)
    assert sum(parameter.numel() for parameter in extractor.parameters()) == 304_368_640
    assert extractor.feature_dimension == EXTRACTORS[extractor.name].feature_dimension == 1024
    assert extractor.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    write_constants(path, {name: shape for name, shape in shapes.items() if name != "blocks.23.ls2.gamma"})
    with pytest.raises(UserError, match=r"dinov2_vitl14_pretrain\.pth: holds no weights of this network"):
        load_dinov2(path)
    write_constants(path, shapes | {"register_tokens": (1, 4, 1024)})
    with pytest.raises(UserError, match="holds no weights of this network"):
        load_dinov2(path)


@pytest.mark.parametrize("load", [load_vgg16, load_squeezenet1_0, load_dinov2])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_of_something_else_are_refused(tmp_path, load, name):
    path = tmp_path / name
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=rf"{name}: holds no weights of this network"):
        load(path)


@pytest.fixture
def vgg16_file(tmp_path, monkeypatch) -> Path:
    """A file of VGG16's shapes in a folder of its own, which is taken for the published one."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in torchvision.models.vgg16().state_dict().items()}
    path = tmp_path / "folder/vgg16.pth"
    path.parent.mkdir()
    write_constants(path, shapes)
    spec = EXTRACTORS["vgg16"]
    file = PretrainedFile(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    monkeypatch.setitem(EXTRACTORS, "vgg16", replace(spec, files=(file,)))
    monkeypatch.setitem(PUBLISHED, "vgg16", (file,))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    return path


def test_vgg16_is_found_by_name_in_the_usual_folders(vgg16_file, monkeypatch):
    monkeypatch.setenv("FVQ_WEIGHTS", str(vgg16_file.parent))
    extractor = load_extractor("vgg16")
    sha256 = hashlib.sha256(vgg16_file.read_bytes()).hexdigest()
    assert (extractor.name, extractor.weights_sha256) == ("vgg16", sha256)
    vgg16_file.write_bytes(vgg16_file.read_bytes() + b"!")
    with pytest.raises(UserError, match=r"vgg16\.pth: SHA-256 is "):
        load_extractor("vgg16")


def test_neighbours_are_on_vgg16_where_its_weights_are_found(vgg16_file, monkeypatch):
    inception, photos = SimpleNamespace(name="inception-2015"), SimpleNamespace(name="photos")
    protocol, folder = PROTOCOLS["torch-fidelity"], vgg16_file.parent

    def found(network=inception, protocol=protocol, weights=None):
        loaded = load_network_of_neighbours(protocol, network, weights=weights)
        return None if loaded is None else (loaded.name, loaded.weights_sha256)

    expected = ("vgg16", hashlib.sha256(vgg16_file.read_bytes()).hexdigest())
    assert found() is None, "in no folder that is looked into"
    assert found(weights=folder) == expected
    assert found(weights=vgg16_file) is None, "a file is the extractor's"
    monkeypatch.setenv("FVQ_WEIGHTS", str(folder))
    assert found() == found(weights=folder.parent) == expected
    assert found(photos) is None and found(protocol=PROTOCOLS["adm"]) is None
    vgg16_file.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"vgg16\.pth: SHA-256 is "):
        found()


@pytest.mark.parametrize("name", EXTRACTORS)
def test_without_its_weights_an_extractor_says_in_a_line_what_to_put_where(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    with pytest.raises(UserError) as missing:
        load_extractor(name)
    message, file = str(missing.value), PUBLISHED[name][0]
    assert "\n" not in message
    for part in (file.name, file.sha256, str(tmp_path / "hub/checkpoints"), "$FVQ_WEIGHTS", f"--fetch {name}"):
        assert part in message
    assert file.size is None or f"{file.size:,} bytes" in message


def test_a_study_s_classifier_is_named_by_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classifier = ImageClassifier(ImageClassifierConfig(name="photos", image_size=16, classes=3, width=8)).eval()
    classifier.save(tmp_path / "vgg16")
    assert load_extractor("./vgg16").name == "photos"
    assert load_extractor("./vgg16", weights=tmp_path).name == "photos", "the folder is for other networks"
    for weights in ("vgg16", "no_such_folder"):
        with pytest.raises(UserError, match=r"weights: .*vgg16 is a file of weights already"):
            load_extractor("./vgg16", weights=tmp_path / weights)
    with pytest.raises(UserError) as unknown:
        load_extractor("vgg19")
    for part in ("vgg19", *EXTRACTORS):
        assert part in str(unknown.value)


# Other packages' extractors

PLUG_IN = """
    import torch
    from fvq.evaluate.networks.extractor import Outputs
    from fvq.evaluate.networks.extractors import ExtractorSpec
    from fvq.evaluate.networks.pretrained import PretrainedFile

    class Colours:
        name, feature_dimension, spatial_dimension, classes, resize = "colours", 3, 0, 0, "none"

        def __init__(self, path, device):
            self.scale, self.weights_sha256 = float(path.read_text()), {sha256!r}

        def __call__(self, images, *, spatial=False):
            return Outputs(images.float().mean((2, 3)) * self.scale, None, None)

    FILE = PretrainedFile("colours.txt", {sha256!r}, 3)
    good = ExtractorSpec("colours", (FILE,), 3, Colours)
    longer = ExtractorSpec("longer", (FILE,), 4, Colours)
    failing = ExtractorSpec("failing", (FILE,), 3, lambda path, device: path.no_such_thing)
    inception = ExtractorSpec("inception-v3", (FILE,), 3, Colours)
    vgg16 = ExtractorSpec("vgg16", (FILE,), 3, Colours)
    nothing = 3
"""
POINTS = """
    [fvq.extractors]
    colours = colours_of_images:good
    longer = colours_of_images:longer
    failing = colours_of_images:failing
    inception-v3 = colours_of_images:inception
    fid_colours = colours_of_images:good
    vgg16 = colours_of_images:vgg16
    nothing = colours_of_images:nothing
    missing = no_such_module:good
    renamed = colours_of_images:good
"""


def install(folder: Path, name: str, points: str) -> None:
    information = folder / f"{name}-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text(textwrap.dedent(points))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of an installed package that brings extractors, good and bad, and their weights."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    sha256 = hashlib.sha256(b"2.0").hexdigest()
    (folder / "colours_of_images.py").write_text(textwrap.dedent(PLUG_IN).format(sha256=sha256))
    install(folder, "colours", POINTS)
    (tmp_path / "colours.txt").write_text("2.0")
    monkeypatch.setenv("FVQ_WEIGHTS", str(tmp_path))
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("colours_of_images", None)


def test_another_package_brings_an_extractor(package):
    assert "colours" in plug_in_names()
    extractor = load_extractor("colours")
    images = photo()
    assert torch.equal(extractor(images).features, 2 * images.float().mean((2, 3)))
    with pytest.raises(UserError, match=r"colours_of_images\.py: SHA-256 is"):
        load_extractor("colours", weights=package / "colours_of_images.py")
    with pytest.raises(UserError, match=r"known: .*squeezenet1_0, colours, "):
        load_extractor("colors")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing", "colours 1.2, no_such_module:good.*cannot be loaded .ModuleNotFoundError"),
        ("nothing", "is no ExtractorSpec"),
        ("renamed", "is no ExtractorSpec of this name"),
        ("failing", "fails on .*colours.txt .AttributeError"),
        ("longer", "loads colours with features of 3 values, and should longer with 4"),
        ("inception-v3", "does not begin with fid or inception"),
        ("fid_colours", "does not begin with fid or inception"),
    ],
)
def test_a_broken_plug_in_is_one_line_that_names_it(package, name, complaint):
    with pytest.raises(UserError, match=rf"^extractor {name}[: ].*{complaint}") as broken:
        load_extractor(name)
    assert "\n" not in str(broken.value)
    assert load_extractor("colours").name == "colours", "the others stay usable"


def test_plug_ins_do_not_replace_extractors_and_not_each_other(package):
    assert find_extractor("vgg16") is EXTRACTORS["vgg16"]
    install(package, "paints", "[fvq.extractors]\ncolours = colours_of_images:good\n")
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"colours: several packages bring one: .*paints 1\.2"):
        load_extractor("colours")
