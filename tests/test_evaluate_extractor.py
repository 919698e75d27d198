"""The feature classifier: training, resume, files; and the Inception network against another port of it."""

import hashlib

import pytest
import pytorch_fid.inception
import torch
import torchvision
from pydantic import ValidationError
from skimage import data

from fvq.evaluate.classifier import ImageClassifier, ImageClassifierConfig
from fvq.evaluate.classifier_training import ExtractorTraining, augment, train_extractor
from fvq.evaluate.extractor import extract
from fvq.evaluate.images import in_batches
from fvq.evaluate.inception import load_inception, save_reference
from fvq.evaluate.load import load_extractor
from fvq.evaluate.pretrained import PretrainedFile
from fvq.runtime.errors import UserError
from fvq.runtime.schedule import Schedule
from fvq.runtime.weights import save_weights

PHOTOS = (data.astronaut, data.chelsea, data.coffee, data.rocket, data.hubble_deep_field, data.immunohistochemistry)


def crops(count: int, part: slice, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` 32x32 crops of each photograph at 128 pixels' height, from some of its columns; which photograph."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for load in PHOTOS:
        photo = torch.from_numpy(load()).permute(2, 0, 1)[None].float()
        small = torch.nn.functional.interpolate(photo, (128, 160), mode="bilinear", antialias=True)[
            0, :, :, part
        ].byte()
        for _ in range(count):
            y = int(torch.randint(0, 128 - 31, (), generator=generator))
            x = int(torch.randint(0, small.shape[2] - 31, (), generator=generator))
            images.append(small[:, y : y + 32, x : x + 32])
    return torch.stack(images), torch.arange(len(PHOTOS)).repeat_interleave(count)


def settings(**changes: object) -> ExtractorTraining:
    schedule = Schedule(warmup=0.05, warmup_from=0.01, constant=0.3, final=0.01, shape="linear")
    values = {
        "steps": 120,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "weight_decay": 0.05,
        "width": 8,
        "flips": True,
        "shift": 2,
        "schedule": schedule,
    }
    return ExtractorTraining.model_validate(values | changes)


def small_classifier() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(ImageClassifierConfig(name="photos", image_size=16, classes=3, width=8)).eval()


def test_it_learns_to_tell_held_out_crops_apart():
    images, labels = crops(100, slice(0, 124), seed=0)
    held_out, held_out_labels = crops(30, slice(128, 160), seed=1)
    classifier, history = train_extractor(images, labels, settings(), name="photos", classes=len(PHOTOS), seed=0)
    result = extract(classifier, in_batches(held_out, 64), count=len(held_out))
    accuracy = (result.posteriors.argmax(1) == held_out_labels).float().mean()
    assert accuracy > 0.6, "chance is 0.17"
    assert history[-1]["step"] == 120 and history[-1]["loss"] < history[0]["loss"]
    assert result.features.shape == (180, classifier.feature_dimension) and result.features.dtype == torch.float32
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())


def test_an_interrupted_training_ends_the_same(tmp_path, monkeypatch):
    images, labels = crops(8, slice(0, 160), seed=2)
    arguments = {"name": "photos", "classes": 6, "seed": 3, "checkpoint_every": 2, "log_every": 3}
    whole, history = train_extractor(images, labels, settings(steps=6), **arguments)

    import fvq.evaluate.classifier_training as module

    batch_indices = module.batch_indices

    def killed_at_5(count: int, batch_size: int, step: int, seed: int) -> torch.Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return batch_indices(count, batch_size, step, seed)

    monkeypatch.setattr(module, "batch_indices", killed_at_5)
    with pytest.raises(KeyboardInterrupt):
        train_extractor(images, labels, settings(steps=6), checkpoint_folder=tmp_path, **arguments)
    monkeypatch.setattr(module, "batch_indices", batch_indices)
    assert list(tmp_path.glob("step-00000004.pt"))
    resumed, resumed_history = train_extractor(
        images, labels, settings(steps=6), checkpoint_folder=tmp_path, **arguments
    )
    assert resumed_history == history
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_augmentation_shifts_and_mirrors():
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images, flips=False, shift=0), images)
    torch.manual_seed(0)
    mirrored = augment(images, flips=True, shift=0)
    was_mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(mirrored, images, strict=True)]
    assert any(was_mirrored) and not all(was_mirrored)
    assert all(m or torch.equal(a, b) for m, a, b in zip(was_mirrored, mirrored, images, strict=True))
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").byte()
    for shifted, source in zip(augment(images, flips=False, shift=2), padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(source[:, y : y + 8, x : x + 8], shifted)]
        assert len(places) == 1


def test_features_do_not_depend_on_the_batch():
    images = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classifier = small_classifier()
    whole = extract(classifier, [images], count=10)
    parts = extract(classifier, in_batches(images, 3), count=10)
    torch.testing.assert_close(parts.features, whole.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.posteriors, classifier(images).softmax(1).detach())


def test_extract_refusals():
    classifier = small_classifier()
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(UserError, match="5 images are expected, and there are 4"):
        extract(classifier, [images], count=5)
    with pytest.raises(UserError, match="0 images are expected"):
        extract(classifier, [], count=0)
    with pytest.raises(UserError, match="uint8, not float32"):
        extract(classifier, [images.float()], count=4)
    with pytest.raises(UserError, match="16x16 pixels, and these have 32x32"):
        extract(classifier, [torch.zeros(4, 3, 32, 32, dtype=torch.uint8)], count=4)
    with torch.no_grad():
        classifier.head.weight.fill_(torch.inf)
    with pytest.raises(UserError, match="not finite"):
        extract(classifier, [images], count=4)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    path = tmp_path / "extractor.safetensors"
    classifier = small_classifier()
    assert classifier.weights_sha256 == "not saved"
    classifier.save(path)
    loaded = load_extractor(path)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        classifier.features_and_posteriors(images), loaded.features_and_posteriors(images), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert loaded.name == "photos"
    assert loaded.weights_sha256 == classifier.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_that_hold_no_classifier_are_refused(tmp_path):
    path = tmp_path / "extractor.safetensors"
    classifier = small_classifier()
    config = classifier.config.model_dump()
    save_weights(path, classifier.state_dict(), kind="extractor", config=config | {"width": 16})
    with pytest.raises(UserError, match=r"extractor.safetensors: the tensors do not fit"):
        load_extractor(path)
    save_weights(path, classifier.state_dict(), kind="extractor", config=config | {"depth": 16})
    with pytest.raises(UserError, match=r"extractor.safetensors: depth: is no known parameter"):
        load_extractor(path)


def test_a_classifier_cannot_pass_for_inception():
    with pytest.raises(ValidationError, match="Inception"):
        ImageClassifierConfig(name="inception-2015", image_size=16, classes=3, width=8)


def test_training_refusals():
    images, labels = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    arguments = {"name": "photos", "classes": 3, "seed": 0}
    with pytest.raises(UserError, match="0 to 1, and 0 to 2"):
        train_extractor(images, labels, settings(), **arguments | {"classes": 2})
    with pytest.raises(UserError, match="must be 4 int64 numbers"):
        train_extractor(images, labels[:3], settings(), **arguments)
    with pytest.raises(UserError, match="square"):
        train_extractor(images[:, :, :8], labels, settings(), **arguments)
    with pytest.raises(UserError, match="shift: 16 pixels"):
        train_extractor(images, labels, settings(shift=16), **arguments)
    with pytest.raises(UserError, match="batch_size: 32 samples"):
        train_extractor(images, labels, settings(), **arguments)
    with pytest.raises(ValidationError, match="epochs"):
        settings(epochs=3)


def test_inception_agrees_with_pytorch_fid(tmp_path, monkeypatch):
    torch.manual_seed(0)
    random = torchvision.models.inception_v3(weights=None, aux_logits=False, num_classes=1008, init_weights=False)
    for module in random.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
    path = tmp_path / "inception.pth"
    torch.save(random.state_dict(), path)
    file = PretrainedFile(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    network = load_inception(path, file=file)
    images = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    features, posteriors = network.features_and_posteriors(images)

    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: random.state_dict())
    other = pytorch_fid.inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    with torch.inference_mode():
        expected = other((images.float() - 128) / 128)[0].flatten(1)
        expected_posteriors = (expected @ random.fc.weight.T).softmax(1)
    assert features.shape == (1, 2048) and expected.std() > 0
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    torch.testing.assert_close(posteriors, expected_posteriors, rtol=1e-3, atol=1e-6)
    assert network.weights_sha256 == file.sha256


def test_inception_without_its_weights_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    with pytest.raises(UserError) as missing:
        load_inception()
    message = str(missing.value)
    assert "\n" not in message
    for part in (
        "weights-inception-2015-12-05-6726825d.pth",
        "95,628,359",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "$TORCH_HOME/hub/checkpoints",
        "train_extractor.weights",
    ):
        assert part in message

    wrong = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"6726825d\.pth: SHA-256 is "):
        load_inception()
    with pytest.raises(UserError, match="holds no weights of this network"):
        load_inception(wrong, file=PretrainedFile(wrong.name, hashlib.sha256(wrong.read_bytes()).hexdigest(), 15))


def test_a_reference_to_published_weights_is_followed_and_checked(tmp_path, monkeypatch):
    published = tmp_path / "weights.pth"
    published.write_bytes(b"not the published bytes")

    class Network:
        name, path, weights_sha256 = "inception-2015", published, "0" * 64

    reference = tmp_path / "extractor.safetensors"
    save_reference(Network(), reference)
    with pytest.raises(UserError, match=r"weights\.pth: SHA-256 is"):
        load_extractor(reference)
    published.unlink()
    with pytest.raises(UserError, match=r"train_extractor\.weights: .*weights\.pth: no such file"):
        load_extractor(reference)
