"""Archives as streams: numpy and the study read what was written, any rows are read back, damage never passes."""

import hashlib
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fvq.runtime.errors import UserError
from fvq.runtime.npz import ArrayStream, array_names, open_array, write_npz
from fvq.study.archives import image_shape, read_images, read_labels

DTYPES = st.sampled_from([np.uint8, np.int64, np.float32, np.bool_, np.complex128, np.dtype(">i4"), np.dtype("S3")])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))


def cut(array, places):
    """The array in chunks that end at these places; equal places give empty chunks."""
    return np.split(array, sorted(place % (len(array) + 1) for place in places))


def stream(array, chunks, name="a"):
    return ArrayStream(name, array.dtype, array.shape, chunks)


@settings(max_examples=60, deadline=None)
@given(ARRAYS, ARRAYS, st.lists(st.integers(0, 20), max_size=4))
def test_numpy_reads_what_was_written_and_the_chunks_do_not_matter(tmp_path_factory, first, second, places):
    folder = tmp_path_factory.mktemp("npz")
    write_npz(folder / "cut.npz", [stream(first, cut(first, places)), stream(second, iter([second]), "arr_1")])
    write_npz(folder / "whole.npz", [stream(first, [first]), stream(second, cut(second, places), "arr_1")])
    assert (folder / "cut.npz").read_bytes() == (folder / "whole.npz").read_bytes()
    assert zipfile.ZipFile(folder / "cut.npz").testzip() is None
    for mode in (None, "r"):
        with np.load(folder / "cut.npz", mmap_mode=mode, allow_pickle=False) as archive:
            assert list(archive) == ["a", "arr_1"]
            for name, array in (("a", first), ("arr_1", second)):
                assert archive[name].dtype == array.dtype and archive[name].shape == array.shape
                assert archive[name].tobytes() == array.tobytes()


def test_the_study_reads_it(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), np.uint8)
    labels = np.arange(9)
    path = tmp_path / "samples.npz"
    write_npz(path, [stream(images, cut(images, [2, 5]), "arr_0"), stream(labels, [labels], "arr_1")])
    assert image_shape(path, "arr_0") == images.shape
    assert np.array_equal(read_images(path, "arr_0", [1, 4, 8]), images[[1, 4, 8]])
    assert np.array_equal(read_labels(path), labels)


def test_arrays_lie_uncompressed_and_in_rows(tmp_path):
    transposed = np.arange(24, dtype=np.int16).reshape(4, 6).T
    write_npz(tmp_path / "a.npz", [stream(transposed, [transposed])])
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        (entry,) = archive.infolist()
        assert entry.filename == "a.npy" and entry.compress_type == zipfile.ZIP_STORED
    assert transposed.tobytes() in (tmp_path / "a.npz").read_bytes()


def test_only_one_chunk_is_in_memory(tmp_path):
    rows, chunk = 64, 2**20
    made = []

    def chunks():
        for index in range(rows):
            made.append(index)
            yield np.full((1, chunk), index, np.uint8)

    tracemalloc.start()
    write_npz(tmp_path / "large.npz", [ArrayStream("a", np.uint8, (rows, chunk), chunks())])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(made) == rows and peak < 4 * chunk
    with np.load(tmp_path / "large.npz") as archive:
        assert (archive["a"][:, ::4096] == np.arange(rows)[:, None]).all()


def test_small_archives_have_the_places_that_more_than_four_gigabytes_need(tmp_path):
    """They cannot be added once the stream has grown."""
    write_npz(tmp_path / "a.npz", [stream(np.zeros(3), [np.zeros(3)])])
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.infolist()[0].extract_version >= zipfile.ZIP64_VERSION


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([np.zeros((2, 3), np.float64)], r"a chunk is float64 \(2, 3\), not rows of the array's float32 \(2, 3\)"),
        ([np.zeros((2, 4), np.float32)], r"a chunk is float32 \(2, 4\)"),
        ([np.zeros(3, np.float32)], r"a chunk is float32 \(3,\)"),
        ([np.zeros((), np.float32)], r"a chunk is float32 \(\)"),
        ([np.zeros((1, 3), np.float32)], "a: its chunks have 1 rows, not 2"),
        ([], "a: its chunks have 0 rows, not 2"),
        ([np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float32)], "a: its chunks have more than its 2 rows"),
    ],
)
def test_chunks_that_do_not_fit_leave_what_was_there(tmp_path, chunks, message):
    path = tmp_path / "a.npz"
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        write_npz(path, [ArrayStream("a", np.float32, (2, 3), chunks)])
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_arrays_that_cannot_be_streamed(tmp_path):
    with pytest.raises(ValueError, match="object"):
        write_npz(tmp_path / "a.npz", [ArrayStream("a", object, (1,), [np.array([None])])])
    with pytest.raises(ValueError, match=r"a: float64 \(\)"):
        write_npz(tmp_path / "a.npz", [stream(np.float64(1), [])])
    with pytest.raises(ValueError, match=r"the same name \(a, a\)"):
        write_npz(tmp_path / "a.npz", [stream(np.zeros(1), [np.zeros(1)])] * 2)
    assert not list(tmp_path.iterdir())


def test_an_error_between_chunks_leaves_nothing(tmp_path):
    def chunks():
        yield np.zeros(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_npz(tmp_path / "a.npz", [ArrayStream("a", np.float64, (4,), chunks())])
    assert not list(tmp_path.iterdir())


# reading


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@settings(max_examples=60, deadline=None)
@given(ARRAYS, st.booleans(), st.integers(0, 5), st.integers(0, 5), st.integers(1, 6))
def test_rows_are_slices(tmp_path_factory, array, compressed, first, second, chunk):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, first=np.arange(3), a=array, labels=np.zeros(2))
    start, stop = sorted((first % (len(array) + 1), second % (len(array) + 1)))
    reader = open_array(path, "a")
    assert reader.shape == array.shape and reader.dtype == array.dtype
    chunks = list(reader.rows(start, stop, chunk))
    assert [len(rows) for rows in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    assert all(rows.dtype == array.dtype and rows.shape[1:] == array.shape[1:] for rows in chunks)
    assert b"".join(rows.tobytes() for rows in chunks) == array[start:stop].tobytes()
    assert b"".join(rows.tobytes() for rows in reader.rows(0, len(array), chunk)) == array.tobytes()
    if len(array):
        indices = [stop % len(array), start % len(array), len(array) - 1]
        assert reader.take(indices).tobytes() == array[indices].tobytes()
    assert reader.digest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_rows_outside_the_array(tmp_path):
    np.savez(tmp_path / "a.npz", a=noise(4, 3), number=3.0)
    reader = open_array(tmp_path / "a.npz", "a")
    for start, stop, chunk in ((-1, 2, 1), (0, 5, 1), (3, 2, 1), (0, 4, 0)):
        with pytest.raises(ValueError, match=r"of an array \(4, 3\)"):
            reader.rows(start, stop, chunk)
    with pytest.raises(ValueError, match=r"of an array \(\)"):
        open_array(tmp_path / "a.npz", "number").rows(0, 0, 1)
    for index in (-1, 4):
        with pytest.raises(IndexError, match="outside the array's 4 rows"):
            reader.take([0, index])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reading_some_rows_does_not_take_the_memory_of_all(tmp_path, save):
    """Of a compressed array zipfile unpacks 16 MiB at a time, and copies it, on the way to the first row."""
    row = 2**20
    save(tmp_path / "a.npz", a=np.arange(64, dtype=np.uint8).repeat(row).reshape(64, row))
    reader = open_array(tmp_path / "a.npz", "a")
    tracemalloc.start()
    assert [int(rows[-1, -1]) for rows in reader.rows(40, 64, 2)] == list(range(41, 64, 2))
    digest = reader.digest()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(digest) == 64 and peak < 40 * row


def test_stored_rows_are_read_at_their_place(tmp_path, monkeypatch):
    """The reading of ten rows out of a thousand does not go through the others."""
    np.savez(tmp_path / "a.npz", a=noise(1000, 10_000))
    reader = open_array(tmp_path / "a.npz", "a")
    read = []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

    monkeypatch.setattr(type(tmp_path), "open", lambda path, mode, **_: Counting(path, mode))
    assert sum(len(rows) for rows in reader.rows(600, 610, 5)) == 10
    assert sum(read) == 100_000


def test_a_member_beyond_four_gigabytes(tmp_path):
    """A sparse file: headers and directory of a 5 GB array whose bytes are holes but for one row."""
    rows, row = 5 * 2**10, 2**20
    path = tmp_path / "large.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (rows, row)})
    size = len(header.getvalue()) + rows * row
    entry = zipfile.ZipInfo("a.npy")
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(entry, "w", force_zip64=True) as member:
            member.write(header.getvalue())
        begin = archive.fp.tell() - len(header.getvalue())
        archive.fp.seek(begin + size - 10)
        archive.fp.write(b"0123456789")
        entry.file_size = entry.compress_size = size
        archive.start_dir = archive.fp.tell()
    reader = open_array(path, "a")
    assert reader.shape == (rows, row)
    assert reader.take([rows - 1])[0, -10:].tobytes() == b"0123456789"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(UserError, match="not a valid npz archive"):
        open_array(path, "a")


def read_all(path):
    """Everything that an evaluation reads: the digest, and the rows in two segments."""
    reader = open_array(path, "a")
    digest = reader.digest()
    middle = reader.shape[0] // 2
    rows = [*reader.rows(0, middle, 2), *reader.rows(middle, reader.shape[0], 2)]
    return digest, np.concatenate(rows)


def one_line(error):
    assert "large" not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_cut_anywhere_is_refused(tmp_path, save):
    save(tmp_path / "whole.npz", a=noise(6, 5, 7), b=noise(9))
    whole = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            open_array(path, "a")
        assert one_line(error).startswith(f"{path}: ")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_byte_anywhere_in_the_array_is_found(tmp_path, save):
    """Of the bytes around it, dates and the like, some mean nothing: then the array is what it was."""
    array = noise(6, 5, 7)
    save(tmp_path / "whole.npz", a=array, b=noise(9))
    whole = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "damaged.npz"
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x21]) + whole[place + 1 :])
        try:
            _, rows = read_all(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            assert np.array_equal(rows, array), place
    assert refused > array.size


def test_reading_all_rows_compares_the_checksum(tmp_path):
    np.savez(tmp_path / "a.npz", a=noise(6, 5000))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[20_000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    reader = open_array(tmp_path / "a.npz", "a")
    handed_over = []
    with pytest.raises(UserError, match=r"a\.npz: a is damaged \(its bytes do not have the archive's checksum\)"):
        handed_over.extend(reader.rows(0, 6, 2))
    assert len(handed_over) == 2, "the last rows are kept back"
    with pytest.raises(UserError, match="checksum"):
        reader.digest()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_that_shrinks_after_it_was_opened(tmp_path, save):
    save(tmp_path / "a.npz", a=noise(6, 500))
    reader = open_array(tmp_path / "a.npz", "a")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:1500])
    for read in (lambda: list(reader.rows(2, 6, 2)), lambda: list(reader.rows(0, 6, 6)), reader.digest):
        with pytest.raises(UserError, match=r"a\.npz: a is damaged"):
            read()


def test_a_header_that_claims_more_or_less_than_there_is(tmp_path):
    for shape in ((7, 5), (5, 5)):
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("a.npy", content.getvalue() + bytes(30))
        with pytest.raises(UserError, match=rf"a is damaged \(its header says uint8 \({shape[0]}, 5\)"):
            open_array(tmp_path / "a.npz", "a")


def test_what_is_no_archive_of_arrays(tmp_path):
    with pytest.raises(UserError, match=r"gone\.npz: no such file"):
        open_array(tmp_path / "gone.npz", "a")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(UserError, match=r"text\.npz: not a valid npz archive"):
        array_names(tmp_path / "text.npz")
    with pytest.raises(UserError, match="not a valid npz archive"):
        open_array(tmp_path, "a")
    np.savez(tmp_path / "other.npz", images=np.zeros(3), labels=np.zeros(2))
    assert array_names(tmp_path / "other.npz") == ["images", "labels"]
    with pytest.raises(UserError, match=r"other\.npz: lacks the array arr_0; its arrays: images, labels"):
        open_array(tmp_path / "other.npz", "arr_0")
    np.savez(tmp_path / "odd.npz", objects=np.array([None, 1]), transposed=np.zeros((3, 4)).T)
    with pytest.raises(UserError, match="objects holds Python objects"):
        open_array(tmp_path / "odd.npz", "objects")
    with pytest.raises(UserError, match=r"transposed holds an array stored column-major.*ascontiguousarray"):
        open_array(tmp_path / "odd.npz", "transposed")
    with zipfile.ZipFile(tmp_path / "pickle.npz", "w") as archive:
        archive.writestr("a.npy", b"no array")
    with pytest.raises(UserError, match="a is damaged"):
        open_array(tmp_path / "pickle.npz", "a")
