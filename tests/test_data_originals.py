"""Image originals in folders, tars and Parquet shards: that the ranges are the images' bytes, and what is refused."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from fvq.data.originals.development_kit import read_development_kit, with_labels
from fvq.data.originals.forms import list_originals, recognise
from fvq.data.originals.index import describe_index, index_originals
from fvq.data.originals.listing import common_classes
from fvq.data.originals.tars import list_members
from fvq.runtime.errors import UserError

SYNSETS = ["n01440764", "n01443537", "n02084071"]


def encode(seed, extension="JPEG", mode="RGB", size=(24, 18), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, extension, **options)
    return buffer.getvalue()


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def images():
    """Class -> name -> bytes."""
    return {
        name: {f"{name}_{number}.JPEG": encode(10 * label + number) for number in range(2 + label)}
        for label, name in enumerate(SYNSETS)
    }


def write_tree(folder, images):
    for name, files in images.items():
        (folder / name).mkdir(parents=True)
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
    return folder


def tar_of(files, tar_format=tarfile.GNU_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_tar_of_tars(path, images, tar_format=tarfile.GNU_FORMAT):
    inner = {f"{name}.tar": tar_of(dict(reversed(files.items())), tar_format) for name, files in images.items()}
    path.write_bytes(tar_of(dict(reversed(inner.items())), tar_format))
    return path


def write_shard(path, rows, names=None, label_type=None):
    """Rows of (bytes, path, label)."""
    image = pa.array([None if encoded is None else {"bytes": encoded, "path": name} for encoded, name, _ in rows])
    labels = pa.array([label for *_, label in rows], label_type or pa.int64())
    table = pa.table({"image": image, "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_kit(folder, ids, truth, tar=False):
    """A development kit in which synset ``name`` has the number ``ids[name]``; one more synset has children."""
    root = folder / "ILSVRC2012_devkit_t12"
    (root / "data").mkdir(parents=True)
    rows = [(number, name, 0) for name, number in ids.items()] + [(1000 + len(ids), "n00001740", 2)]
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    savemat(root / "data" / "meta.mat", {"synsets": np.array(rows, dtype=fields)[:, None]})
    (root / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{line}\n" for line in truth))
    if not tar:
        return root
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(root, root.name)
    shutil.rmtree(root)
    return folder / "ILSVRC2012_devkit_t12.tar.gz"


def list_path(path, unpack_folder=None):
    return list_originals(recognise(str(path)), None if unpack_folder is None else str(unpack_folder))


def index(listing, turn_by_exif=False, unreadable="stop"):
    return index_originals(listing, turn_by_exif=turn_by_exif, unreadable=unreadable, description="indexing")


def stored(record):
    content = Path(record.file).read_bytes()
    return content[record.offset : record.offset + record.length]


def check_index(listing, expected):
    """That the index holds exactly ``expected``: (source, class) -> bytes."""
    records = index(listing).records
    found = {(record.source, listing.classes[record.label]): stored(record) for record in records}
    assert len(found) == len(records)
    assert found == expected
    for record in records:
        encoded = expected[record.source, listing.classes[record.label]]
        assert record.sha256 == hashlib.sha256(encoded).digest()
        with Image.open(io.BytesIO(encoded)) as image:
            assert (record.width, record.height, record.mode) == (*image.size, image.mode)


def by_class(images):
    return {(f"{name}/{file}", name): content for name, files in images.items() for file, content in files.items()}


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders(tmp_path, images):
    tree = write_tree(tmp_path / "train", images)
    (tree / SYNSETS[0] / "notes.txt").write_text("no image")
    (tree / SYNSETS[0] / "._0.JPEG").write_text("a leaving of another system")
    (tree / SYNSETS[0] / "deeper").mkdir()
    (tree / SYNSETS[0] / "deeper" / "x.JPEG").write_bytes(encode(5))
    listing = list_path(tree)
    assert listing.classes == tuple(SYNSETS)
    check_index(listing, by_class(images))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_of_tars(tmp_path, images, tar_format):
    if tar_format != tarfile.USTAR_FORMAT:
        images[SYNSETS[0]][f"{'a_long_name_' * 12}é.JPEG"] = encode(77)
    listing = list_path(write_tar_of_tars(tmp_path / "ILSVRC2012_img_train.tar", images, tar_format))
    assert listing.classes == tuple(SYNSETS)
    check_index(listing, by_class(images))


def test_tar_of_tars_lists_the_images_of_class_folders_in_the_same_order(tmp_path, images):
    tree = list_path(write_tree(tmp_path / "train", images)).images
    tars = list_path(write_tar_of_tars(tmp_path / "train.tar", images)).images
    assert [(image.source, image.label) for image in tars] == [(image.source, image.label) for image in tree]


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-zé]{1,130}\.png", fullmatch=True), st.binary(max_size=1500), min_size=1))
def test_ranges_of_members_are_their_bytes(tmp_path_factory, files):
    path = tmp_path_factory.mktemp("tars") / "outer.tar"
    inner = tar_of(files)
    path.write_bytes(tar_of({"before.bin": b"x" * 700, "inner.tar": inner, "empty": b""}))
    content = path.read_bytes()
    (tar,) = (member for member in list_members(path) if member.name == "inner.tar")
    members = list_members(path, tar)
    assert {name: content[offset : offset + length] for name, offset, length in members} == files


def test_folder_and_tar_of_images_are_one_class(tmp_path, images):
    files = images[SYNSETS[2]]
    write_tree(tmp_path, {"val2017": files})
    listing = list_path(tmp_path / "val2017")
    assert listing.classes == ("val2017",)
    check_index(listing, {(file, "val2017"): content for file, content in files.items()})
    nested = {f"val2017/{file}": content for file, content in files.items()}
    (tmp_path / "coco.tar").write_bytes(tar_of({**nested, "val2017/readme.txt": b"no image"}))
    packed = list_path(tmp_path / "coco.tar")
    assert packed.classes == ("coco",)
    check_index(packed, {(file, "coco"): content for file, content in files.items()})
    assert common_classes(packed, listing) == ("coco",)


@pytest.mark.parametrize("tar", [False, True])
def test_development_kit_labels_a_tar_of_images(tmp_path, tar):
    ids = {SYNSETS[2]: 1, SYNSETS[0]: 2, SYNSETS[1]: 3}
    truth = [3, 1, 1, 2, 3]
    files = {f"ILSVRC2012_val_{number:08d}.JPEG": encode(number) for number in range(1, 6)}
    (tmp_path / "val.tar").write_bytes(tar_of(dict(reversed(files.items()))))
    kit = write_kit(tmp_path, ids, truth, tar)
    assert read_development_kit(kit) == (tuple(SYNSETS), [1, 2, 2, 0, 1])
    names = {number: name for name, number in ids.items()}
    expected = {}
    for (file, content), line in zip(files.items(), truth, strict=True):
        expected[f"{names[line]}/{file}", names[line]] = content
    check_index(with_labels(list_path(tmp_path / "val.tar"), kit), expected)
    if not tar:
        assert read_development_kit(kit.parent) == read_development_kit(kit)


def test_bad_development_kits(tmp_path):
    images = tmp_path / "val.tar"
    images.write_bytes(tar_of({"val_00000003.JPEG": encode(0), "cat.JPEG": encode(1)}))
    kit = write_kit(tmp_path / "kit", {name: number for number, name in enumerate(SYNSETS, start=1)}, [1, 2])
    assert "cat.JPEG: its name ends with no number from 1 to 2" in refusal(with_labels, list_path(images), kit)
    images.write_bytes(tar_of({"val_00000003.JPEG": encode(0)}))
    assert "val_00000003.JPEG: its name ends with no number" in refusal(with_labels, list_path(images), kit)
    truth = kit / "data" / "ILSVRC2012_validation_ground_truth.txt"
    for line in ("4", "x", "1001", ""):
        truth.write_text(f"1\n{line}\n")
        assert "ground_truth.txt: line 2 is no ILSVRC2012_ID" in refusal(read_development_kit, kit)
    meta = (kit / "data" / "meta.mat").read_bytes()
    for damaged in (b"", b"no matrix", meta[: len(meta) // 2]):
        (kit / "data" / "meta.mat").write_bytes(damaged)
        assert "data/meta.mat does not read as the kit's" in refusal(read_development_kit, kit)
    truth.unlink()
    assert "holds no data/ILSVRC2012_validation_ground_truth.txt" in refusal(read_development_kit, kit)
    assert "no such file or folder" in refusal(read_development_kit, tmp_path / "nowhere.tar.gz")
    packed = write_kit(tmp_path / "packed", dict(zip(SYNSETS, range(1, 4), strict=True)), [1, 2], tar=True)
    packed.write_bytes(packed.read_bytes()[:-60])
    assert "not a readable tar" in refusal(read_development_kit, packed)


def write_shards(folder, count=2, names=SYNSETS):
    """Shards of four rows each; returns (source, class) -> bytes."""
    expected = {}
    for shard in range(count):
        path = folder / f"train-{shard:05d}-of-{count:05d}.parquet"
        rows = [(encode(10 * shard + row), f"{row}.JPEG" if row else None, (shard + row) % 3) for row in range(4)]
        write_shard(path, rows, names)
        for row, (content, _, label) in enumerate(rows):
            name = f"{row:06d}-{row}.JPEG" if row else "000000-image"
            expected[f"{path.stem}/{name}", names[label] if names else str(label)] = content
    return expected


@pytest.mark.parametrize("names", [SYNSETS, None], ids=["names", "numbers"])
def test_parquet_shards_are_copied_once_into_tars(tmp_path, names):
    expected = write_shards(tmp_path / "data", names=names)
    listing = list_path(tmp_path / "data", tmp_path / "unpacked")
    assert listing.classes == (tuple(names) if names else ("0", "1", "2"))
    check_index(listing, expected)
    tars = sorted((tmp_path / "unpacked").iterdir())
    assert [tar.name[:20] for tar in tars] == ["train-00000-of-00002", "train-00001-of-00002"]
    before = [(tar.stat().st_ino, tar.stat().st_mtime_ns) for tar in tars]
    check_index(list_path(tmp_path / "data" / "train-*.parquet", tmp_path / "unpacked"), expected)
    assert [(tar.stat().st_ino, tar.stat().st_mtime_ns) for tar in tars] == before


def test_interrupted_unpacking_goes_on_with_what_is_missing(tmp_path):
    write_shards(tmp_path / "data")
    second = tmp_path / "data" / "train-00001-of-00002.parquet"
    whole = second.read_bytes()
    write_shard(second, [(encode(0), None, 0), (None, None, 1)], SYNSETS)
    unpacked = tmp_path / "unpacked"
    message = refusal(list_path, tmp_path / "data", unpacked)
    assert "train-00001-of-00002.parquet: row 1: holds no image bytes" in message
    (first,) = unpacked.iterdir()
    inode = first.stat().st_ino
    second.write_bytes(whole)
    assert len(list_path(tmp_path / "data", unpacked).images) == 8
    assert first.stat().st_ino == inode and len(list(unpacked.iterdir())) == 2


def test_a_shard_of_the_same_name_and_other_content_gets_a_tar_of_its_own(tmp_path):
    for part, seed in (("train", 1), ("validation", 2)):
        shard = write_shard(tmp_path / part / "0000.parquet", [(encode(seed), "x.JPEG", 0)], ["cat"])
        check_index(list_path(shard, tmp_path / "tars"), {("0000/000000-x.JPEG", "cat"): encode(seed)})
    assert len(list((tmp_path / "tars").iterdir())) == 2


def test_bad_shards(tmp_path):
    unpacked = tmp_path / "tars"
    shard = tmp_path / "data" / "train-00000-of-00001.parquet"
    row = (encode(0), "x.JPEG", 0)
    write_shard(shard, [row], ["cat"])
    assert "prepare_data.unpack_folder must name a folder" in refusal(list_path, shard)
    for label in (-1, 1, None):
        write_shard(shard, [row, (encode(0), None, label)], ["cat"])
        assert f"row 1: label {label} is no class" in refusal(list_path, shard, unpacked)
    write_shard(shard, [row], ["cat"], pa.float64())
    assert "column label holds double, and integers were expected" in refusal(list_path, shard, unpacked)
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), shard)
    assert "column image holds binary, and a struct with bytes" in refusal(list_path, shard, unpacked)
    pq.write_table(pa.table({"label": [0]}), shard)
    assert "column image is missing" in refusal(list_path, shard, unpacked)
    shard.write_bytes(b"no Parquet")
    assert "not a readable Parquet file" in refusal(list_path, shard, unpacked)
    write_shard(shard, [row], ["cat"])
    other = write_shard(tmp_path / "data" / "train-00001-of-00002.parquet", [row], ["dog"])
    assert f"{other}: its classes are not those of" in refusal(list_path, tmp_path / "data", unpacked)
    other.rename(tmp_path / "data" / "test-00000-of-00001.parquet")
    message = refusal(list_path, tmp_path / "data", unpacked)
    assert "several splits (test, train); a pattern such as" in message and "test-*.parquet" in message
    assert not unpacked.exists()
    list_path(shard, unpacked)
    (tar,) = unpacked.iterdir()
    tar.write_bytes(tar_of({"a": b"1", "b": b"2"}))
    assert "holds 2 images, and train-00000-of-00001.parquet holds 1; remove the tar" in refusal(
        list_path, shard, unpacked
    )


def test_odd_images_are_recorded_and_counted(tmp_path):
    files = {
        "cmyk.jpg": encode(1, mode="CMYK"),
        "grey.jpg": encode(2, mode="L"),
        "bilevel.png": encode(3, "PNG", "1"),
        "alpha.png": encode(4, "PNG", "RGBA"),
        "plain.webp": encode(5, "WEBP"),
        "upright.jpg": encode(6, exif=exif_of(1)),
        "turned.jpg": encode(7, exif=exif_of(6)),
        "odd.jpg": encode(8, exif=exif_of(9)),
        "lying.png": encode(9, "PNG", exif=exif_of(8)),
    }
    listing = list_path(write_tree(tmp_path, {"all": files}) / "all")
    records = {record.source: record for record in index(listing).records}
    assert {name: record.mode for name, record in records.items() if record.mode != "RGB"} == {
        "cmyk.jpg": "CMYK",
        "grey.jpg": "L",
        "bilevel.png": "1",
        "alpha.png": "RGBA",
    }
    assert {name for name, record in records.items() if record.orientation != 1} == {"turned.jpg", "lying.png"}
    assert (records["turned.jpg"].orientation, records["turned.jpg"].width, records["turned.jpg"].height) == (6, 24, 18)
    line = describe_index("validation", list(records.values()) * 1000, 2, turn_by_exif=False)
    assert line == (
        "validation: 9,000 images; 1,000 CMYK, 2,000 grey, 2,000 with an EXIF turn (ignored), 2 unreadable left out"
    )
    assert "with an EXIF turn (applied), 0" in describe_index("x", list(records.values()), 0, turn_by_exif=True)


UNREADABLE = {
    "cut.jpg": encode(1)[:-300],
    "cut.png": encode(2, "PNG")[:-200],
    "text.jpg": b"this is no image\n",
    "empty.png": b"",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_image_stops_or_is_left_out(tmp_path, images, name):
    images[SYNSETS[1]][name] = UNREADABLE[name]
    tree = list_path(write_tree(tmp_path / "train", images))
    tars = list_path(write_tar_of_tars(tmp_path / "train.tar", images))
    assert f"train/{SYNSETS[1]}/{name}: not a readable image (" in refusal(index, tree)
    assert f"train.tar: {SYNSETS[1]}/{name}: not a readable image (" in refusal(index, tars)
    for listing in (tree, tars):
        found = index(listing, unreadable="skip")
        assert found.unreadable == [f"{SYNSETS[1]}/{name}"]
        assert len(found.records) == len(listing.images) - 1


def test_a_class_without_a_readable_image_is_an_error(tmp_path, images):
    images[SYNSETS[1]] = {"a.jpg": b"text", "b.jpg": b""}
    listing = list_path(write_tree(tmp_path / "train", images))
    message = refusal(index, listing, False, "skip")
    assert message == f"{tmp_path / 'train'}: the class {SYNSETS[1]} has no readable image"


def test_a_file_that_cannot_be_read_stops_even_when_unreadable_images_are_skipped(tmp_path, images):
    listing = list_path(write_tree(tmp_path / "train", images))
    gone = Path(listing.images[3].file)
    gone.unlink()
    assert refusal(index, listing, False, "skip") == f"{gone}: No such file or directory"


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/a/caf\xe9.jpg")).write_bytes(encode(0))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert "caf\\udce9.jpg': the name is not valid UTF-8" in refusal(index, list_path(tmp_path))


def test_cut_off_and_damaged_tars_are_refused(tmp_path, images):
    path = write_tar_of_tars(tmp_path / "train.tar", images)
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    for length in (len(content) // 3, len(content) // 2 // 512 * 512, used // 512 * 512):
        path.write_bytes(content[:length])
        assert "not a whole tar" in refusal(list_path, path)
    inner = tar_of(images[SYNSETS[0]])
    second = inner.index(f"{SYNSETS[0]}_0".encode())  # the header of the later member
    for damaged in (inner[:second] + b"\xff" * 512 + inner[second + 512 :], inner[: second + 700], b"no tar" * 200):
        path.write_bytes(tar_of({"n1.tar": damaged}))
        assert "train.tar: n1.tar: not a whole tar" in refusal(list_path, path)
    path.write_bytes(b"no tar at all" * 100)
    assert "train.tar: not a whole tar" in refusal(list_path, path)


def test_other_layouts_are_refused(tmp_path, images):
    image = encode(0)
    path = tmp_path / "train.tar"
    for files, reason in (
        ({"a.tar": tar_of({"x.png": image}), "y.png": image}, "holds both images and tars"),
        ({"a/x.png": image, "b/x.png": image}, r"images in several folders (a, b, …)"),
        ({"readme.txt": b"text"}, "holds neither images nor one tar per class"),
        ({"a.tar": tar_of({"x.txt": b"text"})}, "a.tar: the class a has no images"),
        ({"1/a.tar": tar_of({"x.png": image}), "2/a.tar": tar_of({"x.png": image})}, "two tars of one name"),
    ):
        path.write_bytes(tar_of(files))
        assert reason in refusal(list_path, path)
    packed = tmp_path / "train.tar.gz"
    packed.write_bytes(gzip.compress(tar_of({"x.png": image})))
    assert refusal(list_path, packed).endswith(
        "train.tar.gz: compressed (gzip), so that no image can be read alone; decompress it"
    )
    assert "no such file or folder" in refusal(list_path, tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for none in ("notes.txt", "empty"):
        message = refusal(list_path, tmp_path / none)
        assert all(word in message for word in ("class folders", "folder of images", ".tar", "Parquet", "pattern"))
    assert "matches nothing" in refusal(list_path, tmp_path / "*.parquet")
    assert "notes.txt; a pattern names .parquet files alone" in refusal(list_path, tmp_path / "*.txt")
    write_tree(tmp_path / "hollow", {"a": {"x.png": image}, "b": {}})
    assert "the class b has no images" in refusal(list_path, tmp_path / "hollow")


def test_classes_of_both_parts_must_agree(tmp_path, images):
    train = list_path(write_tar_of_tars(tmp_path / "train.tar", images))
    assert common_classes(train, list_path(write_tree(tmp_path / "val", images))) == tuple(SYNSETS)
    del images[SYNSETS[1]]
    other = list_path(write_tree(tmp_path / "other", images))
    message = refusal(common_classes, train, other)
    assert message.endswith(f"(2 and 3; only one holds {SYNSETS[1]})") and f"{tmp_path / 'other'}:" in message
    reordered = other._replace(classes=tuple(reversed(SYNSETS)))
    assert "the same names in another order" in refusal(common_classes, train, reordered)
    numbers = [other._replace(classes=tuple("0123"[:count]), naming="numbers") for count in (4, 2)]
    assert common_classes(*numbers) == common_classes(*reversed(numbers)) == ("0", "1", "2", "3")
