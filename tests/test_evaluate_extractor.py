"""The feature classifier: training, resume, files."""

import hashlib

import pytest
import torch
from pydantic import ValidationError
from skimage import data

from fvq.evaluate.images import in_batches
from fvq.evaluate.networks.classifier import ImageClassifier, ImageClassifierConfig
from fvq.evaluate.networks.classifier_training import ExtractorTraining, augment, train_extractor
from fvq.evaluate.networks.extractor import Outputs
from fvq.evaluate.networks.extractors import load_extractor
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
    outputs = classifier(held_out)
    accuracy = (outputs.logits.argmax(1) == held_out_labels).float().mean()
    assert accuracy > 0.6, "chance is 0.17"
    assert history[-1]["step"] == 120 and history[-1]["loss"] < history[0]["loss"]
    assert outputs.features.shape == (180, classifier.feature_dimension) and outputs.features.dtype == torch.float32
    assert outputs.logits.shape == (180, classifier.classes) == (180, len(PHOTOS))
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())


def test_an_interrupted_training_ends_the_same(tmp_path, monkeypatch):
    images, labels = crops(8, slice(0, 160), seed=2)
    arguments = {"name": "photos", "classes": 6, "seed": 3, "checkpoint_every": 2, "log_every": 3}
    whole, history = train_extractor(images, labels, settings(steps=6), **arguments)

    import fvq.evaluate.networks.classifier_training as module

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
    with torch.no_grad():
        whole = classifier(images)
        parts = [classifier(batch) for batch in in_batches(images, 3)]
    torch.testing.assert_close(torch.cat([part.features for part in parts]), whole.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([part.logits for part in parts]), whole.logits, rtol=1e-4, atol=1e-5)


def test_outputs_are_features_and_class_scores_without_places():
    classifier = small_classifier()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        outputs = classifier(images, spatial=True)
    assert isinstance(outputs, Outputs) and outputs.spatial is None and classifier.spatial_dimension == 0
    assert torch.equal(outputs.logits, classifier.head(outputs.features).detach())
    with pytest.raises(UserError, match="16x16 pixels, and these have 32x24"):
        classifier(torch.zeros(4, 3, 32, 24, dtype=torch.uint8))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    path = tmp_path / "extractor.safetensors"
    classifier = small_classifier()
    assert classifier.weights_sha256 == "not saved"
    classifier.save(path)
    loaded = load_extractor(path)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, theirs in zip(classifier(images)[:2], loaded(images)[:2], strict=True):
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
