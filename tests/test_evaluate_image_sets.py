"""Every form of image set against decoding by hand, its order and digest, preparations, and what is refused."""

import hashlib
import io
import os
import pickle
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvq.data.crops import center_crop_adm, center_crop_plain
from fvq.data.image_table import write_image_table
from fvq.data.manifest import ManifestInfo, ManifestRecord, write_manifest
from fvq.data.records import ImageRecord
from fvq.evaluate.image_order import list_images_below, order_images
from fvq.evaluate.image_sets import TensorImages, open_image_set
from fvq.evaluate.preparation import AS_STORED, Preparation, prepare_batch, prepare_encoded
from fvq.runtime.errors import UserError

COUNT, SIZE = 13, 8


def pictures(count=COUNT, height=SIZE, width=SIZE, seed=0):
    """Smooth pictures (count, height, width, 3), which JPEG changes little."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 3, 3, 3), np.uint8)
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in small]
    return np.stack([np.asarray(image) for image in resized])


def encode(image, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def decode(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def bchw(images):
    return torch.from_numpy(np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2))))


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_columns(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=4)


def write_fvq_manifest(path, files, crop="adm", size=SIZE):
    records = []
    for file in files:
        content = file.read_bytes()
        width, height = Image.open(file).size
        digest = hashlib.sha256(content).digest()
        records.append(
            ManifestRecord(str(file), 0, len(content), 0, file.name, width, height, "RGB", 1, digest),
        )
    settings = {"dataset": "d", "classes": ["c"], "unreadable": []}
    write_manifest(path, records, ManifestInfo(image_size=size, center_crop=crop, turn_by_exif=False, **settings))


def make(form, folder, images):
    """A set of that form at a path in ``folder``."""
    encoded = [encode(image) for image in images]
    named = {f"{number}.png": content for number, content in enumerate(encoded)}
    match form:
        case "npz" | "compressed npz":
            save = np.savez if form == "npz" else np.savez_compressed
            save(folder / "set.npz", arr_0=images, arr_1=np.zeros(len(images)))
            return folder / "set.npz"
        case "folder":
            write_files(folder / "set", named | {"notes.txt": b"no image", ".hidden.png": b"", ".cache/0.png": b""})
            return folder / "set"
        case "tar":
            # Not in order, as tar archives a folder.
            shuffled = dict(sorted(named.items(), key=lambda item: hashlib.md5(item[0].encode()).hexdigest()))
            others = {"./._0.png": b"", "a.md": b""}
            write_tar(folder / "set.tar", {f"./{name}": content for name, content in shuffled.items()} | others)
            return folder / "set.tar"
        case "table":
            records = [ImageRecord(image, 0, "") for image in images]
            write_image_table(
                folder / "set.parquet", records, dataset="d", classes=["c"], image_size=SIZE, split="train"
            )
            return folder / "set.parquet"
        case "bytes":
            write_columns(folder / "set.parquet", image=encoded, label=[0] * len(encoded))
            return folder / "set.parquet"
        case "struct":
            rows = [{"bytes": content, "path": None} for content in encoded]
            write_columns(folder / "set.parquet", label=[0] * len(rows), image=rows)
            return folder / "set.parquet"
        case "manifest":
            write_files(folder / "originals", named)
            write_fvq_manifest(folder / "set.parquet", [folder / "originals" / name for name in named])
            return folder / "set.parquet"


FORMS = ("npz", "compressed npz", "folder", "tar", "table", "bytes", "struct", "manifest")


@pytest.fixture(scope="module")
def images():
    return pictures()


@pytest.fixture(scope="module")
def sets(tmp_path_factory, images):
    return {form: open_image_set(make(form, tmp_path_factory.mktemp("set"), images)) for form in FORMS}


def read(image_set, start=0, stop=None, batch_size=4):
    batches = list(image_set.batches(start, len(image_set) if stop is None else stop, batch_size))
    return torch.cat(batches) if batches else torch.empty(0, 3, image_set.height, image_set.width, dtype=torch.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_hands_over_the_same_images(sets, images, form):
    image_set = sets[form]
    assert len(image_set) == COUNT and (image_set.height, image_set.width) == (SIZE, SIZE)
    assert image_set.name.endswith(("set", "set.npz", "set.tar", "set.parquet"))
    found = read(image_set)
    assert found.dtype == torch.uint8 and torch.equal(found, bchw(images))
    (batch,) = image_set.batches(0, 3, 8)
    assert batch.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([*FORMS, "tensor"]), st.integers(0, COUNT), st.integers(0, COUNT), st.integers(1, COUNT + 2))
def test_batches_are_slices(sets, images, form, first, second, batch_size):
    start, stop = sorted((first, second))
    image_set = TensorImages(bchw(images), "tensor") if form == "tensor" else sets[form]
    batches = list(image_set.batches(start, stop, batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sum(map(len, batches)) == stop - start and all(len(batch) for batch in batches)
    assert torch.equal(read(image_set, start, stop, batch_size), bchw(images)[start:stop])


@pytest.mark.parametrize("form", [*FORMS, "tensor"])
def test_ranges_outside_the_set(sets, images, form):
    image_set = TensorImages(bchw(images), "tensor") if form == "tensor" else sets[form]
    for start, stop, batch_size in ((-1, 2, 1), (0, COUNT + 1, 1), (3, 2, 1), (0, 2, 0)):
        with pytest.raises(ValueError, match=f"of {COUNT}"):
            image_set.batches(start, stop, batch_size)


@pytest.mark.parametrize("form", FORMS)
def test_sets_go_to_other_processes_and_passes_do_not_disturb_each_other(sets, images, form):
    copy = pickle.loads(pickle.dumps(sets[form]))
    one, other = copy.batches(0, COUNT, 5), copy.batches(4, COUNT, 5)
    next(one)
    assert torch.equal(next(other), bchw(images)[4:9]) and torch.equal(next(one), bchw(images)[5:10])
    one.close()
    assert torch.equal(next(other), bchw(images)[9:])


def test_batches_are_made_ahead_and_few(tmp_path, images, monkeypatch):
    image_set = open_image_set(make("folder", tmp_path, pictures(40)))
    decoded = []
    monkeypatch.setattr(
        "fvq.evaluate.stored_images.prepare_encoded",
        lambda *arguments: decoded.append(1) or prepare_encoded(*arguments),
    )
    batches = image_set.batches(0, 40, 2)
    assert not decoded, "nothing is done before the first is asked for"
    next(batches)
    batches.close()
    assert 2 <= len(decoded) <= 10


@pytest.mark.parametrize("form", ["npz", "bytes"])
def test_a_pass_holds_a_few_images(tmp_path, form):
    """Of Parquet in one large row group too; pyarrow counts its own memory."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 100, 100, 3), np.uint8)
    if form == "npz":
        np.savez(tmp_path / "set.npz", arr_0=noise)
        image_set = open_image_set(tmp_path / "set.npz")
    else:
        table = pa.table({"image": [encode(image, "bmp") for image in noise]})
        # A page holds at least so many rows; the usual 1,024 would take more images than a test should make.
        pq.write_table(table, tmp_path / "set.parquet", row_group_size=400, write_batch_size=8)
        del table
        image_set = open_image_set(tmp_path / "set.parquet")
    whole = noise.nbytes
    del noise
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    for _ in image_set.batches(0, 400, 4):
        assert pa.total_allocated_bytes() - before < 0.5 * whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.25 * whole


# order


def test_numbers_in_names_count_as_numbers(tmp_path):
    names = ["b/2.png", "b/10.png", "10.png", "9.png", "a.png", "a10/1.png", "a9/x.png", "01.png", "1.png", "a/1/z.png"]
    expected = ["01.png", "1.png", "9.png", "10.png", "a/1/z.png", "a9/x.png", "a10/1.png", "a.png"]
    expected += ["b/2.png", "b/10.png"]
    assert order_images(tmp_path, names) == expected
    write_files(tmp_path, dict.fromkeys(names, b""))
    assert list_images_below(tmp_path) == expected


@given(st.permutations([f"{number:06d}.png" for number in range(0, 120, 7)]))
def test_padded_numbers_come_as_text_does(tmp_path_factory, names):
    assert order_images(tmp_path_factory.getbasetemp(), names) == sorted(names)


@given(st.lists(st.text("a1٣0-. ", min_size=1, max_size=6).map(lambda stem: f"x{stem}/y{stem}x.png"), min_size=2))
def test_any_names_have_one_order(tmp_path_factory, names):
    where = tmp_path_factory.getbasetemp()
    ordered = order_images(where, names)
    assert ordered == order_images(where, names[::-1]) and sorted(ordered) == sorted(names)


# conversion and preparation


def test_modes_become_rgb(tmp_path, images):
    alpha = np.dstack([images[0], np.full((SIZE, SIZE), 90, np.uint8)])
    grey = images[1][..., 0]
    files = {"0.png": encode(alpha), "1.png": encode(grey), "2.jpg": encode(images[2], "jpeg", quality=90)}
    files["3.png"] = encode(np.uint16(grey) * 257)
    palette = io.BytesIO()
    Image.fromarray(images[4]).convert("P").save(palette, "png")
    files["4.png"] = palette.getvalue()
    write_files(tmp_path / "set", files)
    expected = [images[0], np.dstack([grey] * 3), decode(files["2.jpg"]), np.dstack([grey] * 3)]
    expected.append(np.asarray(Image.open(palette).convert("RGB")))
    assert torch.equal(read(open_image_set(tmp_path / "set")), bchw(np.stack(expected)))


def test_records_of_orientation_are_ignored(tmp_path):
    image = pictures(1, 8, 12)[0]
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", exif=exif)
    write_files(tmp_path / "set", {"0.png": buffer.getvalue()})
    assert torch.equal(read(open_image_set(tmp_path / "set")), bchw(image[None]))


@pytest.mark.parametrize("form", ["npz", "folder", "tar", "bytes"])
@pytest.mark.parametrize("crop", ["adm", "plain"])
def test_crops(tmp_path, form, crop):
    images = pictures(5, 20, 30)
    image_set = open_image_set(make(form, tmp_path, images), Preparation(16, crop))
    cut = center_crop_adm if crop == "adm" else center_crop_plain
    expected = np.stack([np.asarray(cut(Image.fromarray(image), 16)) for image in images])
    assert (image_set.height, image_set.width) == (16, 16) and torch.equal(read(image_set), bchw(expected))


@pytest.mark.parametrize("form", FORMS)
def test_jpeg_compression_is_pillows_own(tmp_path, images, form):
    image_set = open_image_set(make(form, tmp_path, images), Preparation(jpeg_quality=75))
    expected = bchw(np.stack([decode(encode(image, "jpeg")) for image in images]))
    assert torch.equal(read(image_set), expected) and not torch.equal(expected, bchw(images))


def test_batches_in_memory_are_prepared_alike(images):
    expected = np.stack([decode(encode(image, "jpeg")) for image in images])
    for layout in (torch.contiguous_format, torch.channels_last):
        batch = bchw(images).contiguous(memory_format=layout)
        assert torch.equal(prepare_batch(batch, Preparation(jpeg_quality=75)), bchw(expected))
        assert prepare_batch(batch, AS_STORED) is batch
    assert prepare_batch(bchw(images), Preparation(5)).shape == (COUNT, 3, 5, 5)


def test_the_released_protocol_takes_its_own_jpeg_files_as_they_are(tmp_path):
    """Reconstructions as the released code writes them are only decoded; all others are compressed."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    files = {
        "0.JPEG": encode(noise[0], "jpeg"),
        "1.JPEG": encode(noise[1], "jpeg", quality=95),
        "2.JPEG": encode(noise[2], "jpeg", quality=75, subsampling="4:4:4"),
        "3.png": encode(noise[3]),
        "4.JPEG": encode(pictures(1, 40, 20)[0], "jpeg"),
    }
    write_files(tmp_path / "set", files)
    decoded = [decode(content) for content in files.values()]
    decoded[4] = np.asarray(center_crop_plain(Image.fromarray(decoded[4]), 16))
    again = [decode(encode(image, "jpeg")) for image in decoded]
    released = Preparation(16, "plain", 75)
    assert torch.equal(read(open_image_set(tmp_path / "set", released)), bchw(np.stack(again)))
    kept = read(open_image_set(tmp_path / "set", Preparation(16, "plain", 75, keep_jpeg=True)))
    assert torch.equal(kept, bchw(np.stack([decoded[0], *again[1:]])))
    assert not np.array_equal(decoded[0], again[0])


def test_preparations_say_what_they_do():
    assert AS_STORED.describe() == "as stored"
    assert Preparation(256).describe() == "centre square at 256 pixels (ADM)"
    released = "centre crop of 256 pixels without scaling, black around smaller images, JPEG quality 75 4:2:0"
    assert Preparation(256, "plain", 75).describe() == released
    assert Preparation(256, "plain", 75, keep_jpeg=True).describe().startswith(released + " (")
    assert Preparation(jpeg_quality=75).describe() == "as stored, JPEG quality 75 4:2:0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 0}, "at least 1 pixel, not 0"), ({"crop": "plain"}, "a size"), ({"jpeg_quality": 101}, "not 101")],
)
def test_preparations_that_cannot_be(arguments, message):
    with pytest.raises(UserError, match=message):
        Preparation(**arguments)


def test_a_manifest_has_its_own_crop(tmp_path):
    images = pictures(3, 20, 30)
    write_files(tmp_path, {f"{number}.png": encode(image) for number, image in enumerate(images)})
    files = [tmp_path / f"{number}.png" for number in range(3)]
    write_fvq_manifest(tmp_path / "plain.parquet", files, "plain", 16)
    crops = np.stack([np.asarray(center_crop_plain(Image.fromarray(image), 16)) for image in images])
    for preparation in (AS_STORED, Preparation(16, "plain")):
        image_set = open_image_set(tmp_path / "plain.parquet", preparation)
        assert torch.equal(read(image_set), bchw(crops)) and image_set.preparation == Preparation(16, "plain")
    compressed = np.stack([decode(encode(crop, "jpeg")) for crop in crops])
    released = Preparation(16, "plain", 75, keep_jpeg=True)
    assert torch.equal(read(open_image_set(tmp_path / "plain.parquet", released)), bchw(compressed))
    for other in (Preparation(16, "adm"), Preparation(12, "plain")):
        with pytest.raises(UserError, match=r"plain\.parquet: .*cropped to 16 pixels \(plain\)"):
            open_image_set(tmp_path / "plain.parquet", other)


# digest


def test_digests_of_files_are_of_their_bytes(sets, tmp_path, images):
    for form in ("npz", "compressed npz", "tar", "table", "bytes", "struct"):
        with open(sets[form].name, "rb") as file:  # noqa: PTH123
            assert sets[form].digest == hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize("form", ["folder", "manifest"])
def test_digests_do_not_depend_on_the_place_but_on_every_image_and_its_name(tmp_path, images, form):
    def digest(place, images):
        (tmp_path / place).mkdir()
        return open_image_set(make(form, tmp_path / place, images)).digest

    first = digest("a", images)
    assert first == digest("b", images) and len(first) == 64
    assert first != digest("c", images[:-1]) and first != digest("d", images[[1, 0, *range(2, COUNT)]])
    changed = images.copy()
    changed[7, 0, 0, 0] ^= 1
    assert first != digest("e", changed)


def test_digests_of_folders_depend_on_names(tmp_path, images):
    write_files(tmp_path / "a", {"0.png": encode(images[0])})
    write_files(tmp_path / "b", {"1.png": encode(images[0])})
    assert open_image_set(tmp_path / "a").digest != open_image_set(tmp_path / "b").digest


def test_digests_of_tensors(images):
    tensor = bchw(images)
    first = TensorImages(tensor, "a").digest
    assert first == TensorImages(tensor.contiguous(memory_format=torch.channels_last), "b").digest
    assert first != TensorImages(tensor[1:], "a").digest
    assert first != TensorImages(tensor.reshape(COUNT, 3, 2 * SIZE, SIZE // 2), "a").digest
    with pytest.raises(UserError, match="a: images must be uint8, not float32"):
        TensorImages(tensor.float(), "a")


def test_the_digest_finds_a_damaged_archive(tmp_path):
    path = make("npz", tmp_path, pictures(40))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    image_set = open_image_set(path)
    with pytest.raises(UserError, match=r"set\.npz: arr_0 is damaged"):
        _ = image_set.digest
    with pytest.raises(UserError, match=r"set\.npz: arr_0 is damaged"):
        read(image_set)


# what is refused


def refused(path, preparation=AS_STORED):
    """The line that opening and reading everything ends in."""
    with pytest.raises(UserError) as error:
        read(open_image_set(path, preparation))
    line = str(error.value)
    assert "\n" not in line and str(path) in line
    return line


def test_images_of_different_sizes(tmp_path, images):
    files = {"0.png": encode(images[0]), "1.png": encode(images[1]), "2.png": encode(pictures(1, 9, 7)[0])}
    write_files(tmp_path / "set", files)
    write_tar(tmp_path / "set.tar", files)
    write_columns(tmp_path / "set.parquet", image=list(files.values()))
    for name, one, other in (
        ("set", "set/2.png", "set/0.png"),
        ("set.tar", "set.tar: 2.png", "set.tar: 0.png"),
        ("set.parquet", "set.parquet: row 2", "set.parquet: row 0"),
    ):
        line = refused(tmp_path / name)
        assert f"{tmp_path / one}: has 7x9 pixels, and {tmp_path / other} has 8x8" in line and "--size" in line
        assert read(open_image_set(tmp_path / name, Preparation(5))).shape == (3, 3, 5, 5)


def test_arrays_that_are_no_images(tmp_path, images):
    def line(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return refused(tmp_path / "a.npz")

    assert "arr_0 is float64" in (text := line(arr_0=images / 255)) and "round((x + 1) * 127.5)" in text
    assert "arr_0 is int64" in line(arr_0=images.astype(np.int64))
    assert "channels first" in (text := line(arr_0=images.transpose(0, 3, 1, 2))) and "(n, H, W, 3)" in text
    assert "must be uint8 (n, H, W, 3), not (13, 8, 8)" in line(arr_0=images[..., 0])
    assert "(n, H, W, 3)" in line(arr_0=images[..., :1]) and "holds no images" in line(arr_0=images[:0])
    assert "lacks the array arr_0; its arrays: images, labels" in line(images=images, labels=np.zeros(3))
    assert "holds statistics (mu, sigma) and no images" in line(mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "with.npz", arr_0=images, mu=np.zeros(3), sigma=np.eye(3))
    assert len(open_image_set(tmp_path / "with.npz")) == COUNT


def test_what_holds_no_images(tmp_path, images):
    assert "no such file or folder" in refused(tmp_path / "gone")
    write_files(tmp_path, {"empty/.hidden.png": b"", "notes.txt": b"text", "empty.npz": b"", "empty.parquet": b""})
    assert "holds no images (.bmp, .jpeg" in refused(tmp_path / "empty")
    assert "should be an npz archive" in refused(tmp_path / "notes.txt")
    assert "not a valid npz archive" in refused(tmp_path / "empty.npz")
    assert "not a readable Parquet file" in refused(tmp_path / "empty.parquet")
    write_tar(tmp_path / "empty.tar", {"a.txt": b""})
    assert "holds no images" in refused(tmp_path / "empty.tar")
    write_columns(tmp_path / "empty.parquet", image=pa.array([], pa.binary()))
    assert "holds no images" in refused(tmp_path / "empty.parquet")


def test_compressed_tars_and_zips(tmp_path, images):
    for mode, suffix, name in (("gz", ".tar.gz", "gzip"), ("xz", ".tar", "xz"), ("bz2", ".tbz", "bzip2")):
        path = tmp_path / f"set{suffix}"
        with tarfile.open(path, f"w:{mode}") as tar:
            tar.addfile(tarfile.TarInfo("0.png"))
        assert f"compressed ({name})" in refused(path)
    make("npz", tmp_path, images).rename(tmp_path / "set.zip")
    assert "under the suffix .npz" in refused(tmp_path / "set.zip")


def test_damaged_images(tmp_path, images):
    damaged = [encode(image) for image in images[:3]]
    damaged[2] = damaged[2][:-30]
    files = {f"{number}.png": content for number, content in enumerate(damaged)}
    write_files(tmp_path / "set", files)
    write_tar(tmp_path / "set.tar", files)
    write_columns(tmp_path / "set.parquet", image=damaged)
    assert f"{tmp_path / 'set' / '2.png'}: not a readable image" in refused(tmp_path / "set")
    assert "set.tar: 2.png: not a readable image" in refused(tmp_path / "set.tar")
    assert "set.parquet: row 2: not a readable image" in refused(tmp_path / "set.parquet")
    write_columns(tmp_path / "set.parquet", image=[*damaged[:2], None])
    assert "set.parquet: row 2: holds no image bytes" in refused(tmp_path / "set.parquet")
    rows = [{"bytes": damaged[0], "path": "a"}, {"bytes": None, "path": "b.png"}]
    write_columns(tmp_path / "set.parquet", image=rows)
    assert "set.parquet: row 1: holds no image bytes" in refused(tmp_path / "set.parquet")
    os.truncate(tmp_path / "set.tar", 2000)
    assert "set.tar: not a whole tar" in refused(tmp_path / "set.tar")


def test_a_file_that_is_gone_while_the_set_is_read(tmp_path, images):
    image_set = open_image_set(make("folder", tmp_path, images))
    (tmp_path / "set" / "5.png").unlink()
    with pytest.raises(UserError, match=r"5\.png: No such file"):
        read(image_set)
    with pytest.raises(UserError, match=r"5\.png: no such file"):
        _ = image_set.digest


def test_a_tar_with_two_files_of_one_name(tmp_path, images):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in ("0.png", "./0.png"):
            member = tarfile.TarInfo(name)
            member.size = len(content := encode(images[0]))
            tar.addfile(member, io.BytesIO(content))
    assert "holds two files 0.png" in refused(tmp_path / "set.tar")


def test_parquet_files_of_something_else(tmp_path):
    write_columns(tmp_path / "a.parquet", img=[b""], label=[0])
    assert "lacks the column image; its columns: img, label" in refused(tmp_path / "a.parquet")
    for column in (["text"], [[1, 2]], [{"path": "a.png"}]):
        write_columns(tmp_path / "a.parquet", image=column)
        assert "column image holds" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize("form", ["npz", "tar", "bytes"])
def test_files_cut_anywhere_are_refused(tmp_path, images, form):
    """No more than the zeros that end a tar may be missing."""
    path = make(form, tmp_path, images[:3])
    whole = path.read_bytes()
    kept = len(whole.rstrip(b"\0")) if form == "tar" else len(whole)
    for length in range(0, kept, 1 + kept // 150):
        path.write_bytes(whole[:length])
        refused(path)


def test_an_archive_smaller_than_the_plain_crop_is_refused(tmp_path):
    path = tmp_path / "small.npz"
    np.savez(path, arr_0=np.zeros((3, 20, 30, 3), np.uint8))
    with pytest.raises(UserError, match=r"small\.npz: images of 30x20 pixels are smaller than the crop of 32 pixels"):
        open_image_set(path, Preparation(32, "plain"))
    assert open_image_set(path, Preparation(30, "plain")).height == 30  # black above and below
