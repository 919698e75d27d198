"""Training batches: the same pixels for any number of processes, any workers and any place of a resume."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from fvq.data import batches as batches_module
from fvq.data import image_table
from fvq.data.batches import TrainingBatches
from fvq.data.crops import center_crop_adm, random_crop
from fvq.data.decoding import read_rgb_image
from fvq.data.image_table import ImageTable, write_image_table
from fvq.data.manifest import ImageManifest, ManifestInfo, ManifestRecord, write_manifest
from fvq.data.records import ImageRecord
from fvq.runtime.batches import batch_indices
from fvq.runtime.errors import UserError
from fvq.runtime.seeds import generator, seed_all

SIZE, COUNT = 16, 20


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (18 + number, 40 - number, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    return sorted(tmp_path.glob("*.png"))


def open_manifest(path, photos, enlarged=1):
    def record(photo):
        with Image.open(photo) as image:
            width, height = image.size
        place = str(photo), 0, photo.stat().st_size
        return ManifestRecord(*place, 0, photo.name, enlarged * width, height, "RGB", 1, bytes(32))

    described = {"dataset": "noise", "classes": ["a"], "image_size": SIZE}
    info = ManifestInfo(**described, center_crop="adm", turn_by_exif=True, unreadable=[])
    write_manifest(path, map(record, photos), info)
    return ImageManifest.open(path)


@pytest.fixture
def images(tmp_path, photos):
    return open_manifest(tmp_path / "m.parquet", photos)


@pytest.fixture
def table(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    records = [ImageRecord(image, 0, str(row)) for row, image in enumerate(pixels)]
    write_image_table(tmp_path / "t.parquet", records, dataset="noise", classes=["a"], image_size=SIZE, split="train")
    return ImageTable.open(tmp_path / "t.parquet")


def batches_of(images, **changes):
    values = {"batch_size": 8, "seed": 5, "flip": True, "crop": (0.8, 1.0), "workers": 0}
    return TrainingBatches(images, **(values | changes))


def test_batches_are_the_crops_and_mirrorings_that_seed_and_step_draw(images, photos):
    batches = batches_of(images)
    mirrored_count = 0
    for step in range(5):
        indices = batch_indices(COUNT, 8, step, 5).tolist()
        draws = torch.rand(8, 3, dtype=torch.float64, generator=generator(5, "crops", step)).tolist()
        mirrored = torch.rand(8, 1, 1, 1, generator=generator(5, "step", step)).flatten() < 0.5
        batch = batches(step)
        assert batch.dtype == torch.uint8 and batch.shape == (8, 3, SIZE, SIZE) and batch.device.type == "cpu"
        for image, index, triple, mirror in zip(batch, indices, draws, mirrored.tolist(), strict=True):
            expected = np.asarray(random_crop(read_rgb_image(photos[index]), SIZE, 0.8, 1.0, triple))
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected[:, ::-1] if mirror else expected)
        mirrored_count += int(mirrored.sum())
    assert 0 < mirrored_count < 40


def test_without_crop_and_flip_batches_are_centre_crops(images, photos):
    batch = batches_of(images, crop=None, flip=False)(3)
    for image, index in zip(batch, batch_indices(COUNT, 8, 3, 5).tolist(), strict=True):
        expected = np.asarray(center_crop_adm(read_rgb_image(photos[index]), SIZE))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_mirroring_is_what_the_global_stream_of_the_step_gave(table):
    """Earlier trainings drew from torch's global stream right after it was set for the step."""
    batches = batches_of(table, crop=None)
    for step in range(4):
        plain = table.images(batch_indices(COUNT, 8, step, 5))
        seed_all(5, "step", step)
        mirrored = torch.rand(8, 1, 1, 1) < 0.5
        assert torch.equal(batches(step), torch.where(mirrored, plain.flip(-1), plain))


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (4, 1), (2, 2), (1, 4)])
def test_the_processes_parts_are_the_one_process_batch(images, processes, accumulate):
    """Part by part, for what is computed over the first parts of all processes must be one process's first part."""
    alone = batches_of(images)
    shares = [
        batches_of(images, process=process, processes=processes, accumulate=accumulate) for process in range(processes)
    ]
    for step in (0, 1, 7):
        parts = zip(*(share(step).chunk(accumulate) for share in shares), strict=True)
        for joined, expected in zip(parts, alone(step).chunk(accumulate), strict=True):
            assert torch.equal(torch.cat(joined), expected)


def test_workers_give_the_same_batches_from_any_step_and_hand_over_errors(tmp_path, images, photos):
    expected = [batches_of(images)(step) for step in range(6)]
    large = open_manifest(tmp_path / "large.parquet", photos, enlarged=10**6)  # says that it does not fit
    before = torch.get_rng_state()
    with batches_of(large, workers=2) as batches:
        for step in (0, 1, 2, 5, 2, 3):  # a start, a jump ahead and one back
            assert torch.equal(batches(step), expected[step])
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, signal.SIGUSR1)
            os.kill(worker.pid, signal.SIGTERM)
        assert torch.equal(batches(4), expected[4]) and torch.equal(batches(5), expected[5])
        assert all(worker.is_alive() for worker in workers)
        assert torch.equal(torch.get_rng_state(), before)
        for photo in photos:
            photo.write_bytes(b"")
        with pytest.raises(UserError, match=r"^\S+large\.parquet: row \d+ \(\d\d\.png\): .* it ends before byte \d+$"):
            batches(10)
    assert not any(worker.is_alive() for worker in workers)


def test_workers_start_only_where_the_images_do_not_fit(images, table, monkeypatch):
    def refuse(*_):
        raise AssertionError("workers were started")

    monkeypatch.setattr(TrainingBatches, "_start_workers", refuse)
    for kept, crop in ((images, (0.8, 1.0)), (table, None)):
        batches_of(kept, crop=crop, workers=None)(0)
    monkeypatch.setattr(image_table, "CACHE_LIMIT", 0)
    with pytest.raises(AssertionError, match="workers were started"):
        batches_of(table, crop=None, workers=None)(0)
    batches_of(table, crop=None, workers=0)(0)


def test_workers_share_the_cores_of_the_machine(monkeypatch):
    for cores, processes, expected in ((64, "8", 8), (64, "1", 16), (4, "8", 1), (6, None, 6)):
        monkeypatch.setattr(batches_module, "available_cores", lambda cores=cores: cores)
        if processes is None:
            monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert batches_module._default_workers() == expected


def test_bad_parameters_are_named(images, table):
    with pytest.raises(UserError, match=r"^train_tokenizer\.crop: .*t\.parquet is an image table, .* use null$"):
        batches_of(table)
    for changes in ({"processes": 3}, {"accumulate": 3}, {"processes": 2, "accumulate": 8}):
        with pytest.raises(
            UserError, match=r"^train_tokenizer\.batch_size: 8 images do not divide into \d+ equal part"
        ):
            batches_of(images, **changes)
    for crop in ((1.0, 0.8), (0.0, 1.0), (0.8, 1.1)):
        with pytest.raises(UserError, match=r"^train_tokenizer\.crop: shares above 0 up to 1"):
            batches_of(images, crop=crop)
    with pytest.raises(UserError, match="batch_size: 21 samples are asked for at once, and there are 20"):
        batches_of(images, batch_size=21)(0)
