"""Archives written as a stream: numpy and the study read them, bytes follow from the arrays, memory holds a chunk."""

import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fvq.runtime.npz import ArrayStream, write_npz
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
