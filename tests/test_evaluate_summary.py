"""One pass over images: the sums of all features, however it is cut, shared, cached, stopped or damaged."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from projects import run_script
from tiny_extractor import COUNT, TinyExtractor, digest, everything, images, random_images
from torch_fidelity.metric_isc import isc_features_to_metric

from fvq.evaluate import segments
from fvq.evaluate.image_sets import TensorImages, open_image_set
from fvq.evaluate.inception_score import adm_groups, torch_fidelity_groups
from fvq.evaluate.networks.extractor import Outputs
from fvq.evaluate.preparation import Preparation
from fvq.evaluate.summary import Pass, summarize
from fvq.runtime.errors import UserError
from fvq.runtime.interruption import Interrupted
from fvq.runtime.provenance import library_versions


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch):
    monkeypatch.setattr(segments, "_SHORTEST", 10)


@pytest.fixture
def whole() -> str:
    """The digest of an undisturbed pass without a cache."""
    return digest(summarize(everything(TinyExtractor()), images()))


# What it gives


def test_sums_are_those_of_all_features():
    extractor, all_images = TinyExtractor(), images()
    summary = summarize(everything(extractor), all_images)
    outputs = TinyExtractor()(random_images(COUNT, 0), spatial=True)
    for found, expected_nd in ((summary.features, outputs.features), (summary.spatial, outputs.spatial)):
        rows_nd = expected_nd.numpy().astype(np.float64)
        assert found.count == COUNT and found.mean.dtype == found.covariance.dtype == torch.float64
        np.testing.assert_allclose(found.mean, rows_nd.mean(axis=0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found.covariance, np.cov(rows_nd, rowvar=False), rtol=1e-6, atol=1e-7)
    kept_nd = summary.kept.numpy().astype(np.float64)
    torch.testing.assert_close(summary.kept, outputs.features)
    np.testing.assert_allclose(summary.features.mean, kept_nd.mean(axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(summary.features.covariance, np.cov(kept_nd, rowvar=False), rtol=1e-12, atol=1e-14)
    assert extractor.seen == COUNT


@pytest.mark.parametrize("grouping", ["torch-fidelity", "chunks"])
def test_the_score_is_torch_fidelitys(grouping):
    groups = torch_fidelity_groups(COUNT, seed=3) if grouping == "torch-fidelity" else adm_groups(COUNT, chunk=25)
    summary = summarize(everything(TinyExtractor(), groups=groups), images())
    logits = TinyExtractor()(random_images(COUNT, 0)).logits
    if grouping == "torch-fidelity":
        expected = isc_features_to_metric(logits, rng_seed=3)
        parts = [expected["inception_score_mean"], expected["inception_score_std"]]
    else:  # a last chunk of 15 that counts like the others
        scores = [isc_features_to_metric(chunk, splits=1, shuffle=False) for chunk in logits.split(25)]
        scores = [score["inception_score_mean"] for score in scores]
        parts = [np.mean(scores), np.std(scores)]
    assert summary.scores.score() == pytest.approx(parts, rel=1e-6)


def test_what_is_not_asked_for_is_not_there():
    summary = summarize(Pass(TinyExtractor()), images())
    assert summary.spatial is summary.scores is summary.kept is None
    bare = summarize(everything(TinyExtractor(classes=0, spatial=0)), images())
    assert bare.spatial is bare.scores is None and bare.kept.shape == (COUNT, 8)


def test_a_single_segment_and_a_single_image(monkeypatch, tmp_path):
    monkeypatch.setattr(segments, "_SHORTEST", 2000)
    found = summarize(everything(TinyExtractor(), 1), images(1), cache=tmp_path)
    assert found.features.count == 1 and found.kept.shape == (1, 8) and not found.features.scatter.any()


def test_sums_depend_on_the_batches_by_rounding_alone():
    whole = summarize(everything(TinyExtractor()), images())
    parts = summarize(replace(everything(TinyExtractor()), batch_size=3), images())
    for name in ("features", "spatial"):
        found, expected = getattr(parts, name), getattr(whole, name)
        assert found.count == expected.count
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.kept, whole.kept)
    assert parts.scores.score() == pytest.approx(whole.scores.score(), rel=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_not_finite_is_refused_by_name(tmp_path, cached):
    class Broken(TinyExtractor):
        def __call__(self, images, *, spatial=False):
            outputs = super().__call__(images, spatial=spatial)
            places = outputs.spatial
            if self.seen == 52:  # in the sixth of nine segments
                places = places.clone()
                places[1, 2] = torch.nan
            return Outputs(outputs.features, outputs.logits, places)

    with pytest.raises(UserError, match="noise: the extractor tiny gives values that are not finite"):
        summarize(everything(Broken(), batch_size=2), images(), cache=tmp_path if cached else None)


def test_images_must_be_uint8():
    class Floats(TensorImages):
        def batches(self, start, stop, batch_size):
            return (batch.float() for batch in super().batches(start, stop, batch_size))

    with pytest.raises(UserError, match="noise: images must be uint8, not float32"):
        summarize(everything(TinyExtractor()), Floats(random_images(COUNT, 0), "noise"))


# The cache


def test_the_cache_gives_the_same_bits_and_spares_the_network(tmp_path, whole):
    first, second = TinyExtractor(), TinyExtractor()
    assert digest(summarize(everything(first), images(), cache=tmp_path)) == whole
    assert digest(summarize(everything(second), images(), cache=tmp_path)) == whole
    assert (first.seen, second.seen) == (COUNT, 0)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "features.npy", "sums.safetensors"]
    np.testing.assert_array_equal(
        np.load(folder / "features.npy"), summarize(everything(TinyExtractor()), images()).kept
    )


def test_features_that_were_not_kept_are_made_when_asked_for(tmp_path):
    sums_alone = summarize(everything(TinyExtractor(), keep=False), images(), cache=tmp_path)
    assert sums_alone.kept is None and not list(tmp_path.glob("*/features.npy"))
    later = TinyExtractor()
    assert summarize(everything(later), images(), cache=tmp_path).kept.shape == (COUNT, 8) and later.seen == COUNT
    again = TinyExtractor()
    found = summarize(everything(again, keep=False), images(), cache=tmp_path)
    assert not again.seen and torch.equal(found.features.scatter, sums_alone.features.scatter)


def test_every_cause_of_the_figures_has_its_place_in_the_cache(tmp_path):
    """And what has no effect on them has none."""
    changed = random_images(COUNT, 0)
    changed[70, 1, 2, 3] ^= 1
    prepared = TensorImages(random_images(COUNT, 0), "noise")
    prepared.preparation = Preparation(jpeg_quality=75)
    half_pixel = TinyExtractor()
    half_pixel.resize = "another way"
    cases = [
        (everything(TinyExtractor()), images(), True),
        (everything(TinyExtractor(), batch_size=4), images(name="elsewhere"), False),
        (everything(TinyExtractor()), TensorImages(changed, "noise"), True),
        (everything(TinyExtractor(weights_sha256="cd" * 32)), images(), True),
        (everything(TinyExtractor("other")), images(), True),
        (everything(half_pixel), images(), True),
        (everything(TinyExtractor()), prepared, True),
        (everything(TinyExtractor(), groups=torch_fidelity_groups(COUNT, seed=0)), images(), True),
        (everything(TinyExtractor(), groups=adm_groups(COUNT)), images(), True),
        (everything(TinyExtractor(), groups=None), images(), True),
        (everything(TinyExtractor(), spatial=False), images(), True),
        (everything(TinyExtractor(), COUNT - 1), images(COUNT - 1), True),
    ]
    for number, (wanted, of, is_new) in enumerate(cases):
        summarize(wanted, of, cache=tmp_path)
        assert (wanted.extractor.seen > 0) == is_new, number
    assert len(list(tmp_path.iterdir())) == len(cases) - 1


@pytest.mark.parametrize("name", ["code_digest", "library_versions"])
def test_other_code_or_libraries_find_nothing(tmp_path, monkeypatch, name):
    summarize(everything(TinyExtractor()), images(), cache=tmp_path)
    monkeypatch.setattr(f"fvq.evaluate.summary_file.{name}", lambda: "another")
    again = TinyExtractor()
    summarize(everything(again), images(), cache=tmp_path)
    assert again.seen == COUNT


def test_the_library_that_decodes_images_is_one_that_counts():
    assert {"pillow", "torch", "torchvision", "numpy"} <= set(library_versions())


def test_a_network_that_was_not_saved_has_no_cache(tmp_path):
    class Unsaved(TinyExtractor):
        def __init__(self):
            super().__init__()
            self.weights_sha256 = "not saved"

    assert summarize(Pass(Unsaved()), images()).features.count == COUNT
    with pytest.raises(ValueError, match="extractor tiny: its weights are not saved"):
        summarize(Pass(Unsaved()), images(), cache=tmp_path)


def test_a_moved_folder_of_images_is_found_again(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(random_images(12, 1).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{number}.png")
    first = TinyExtractor()
    expected = digest(summarize(everything(first, 12), open_image_set(folder), cache=tmp_path / "cache"))
    folder = folder.rename(tmp_path / "elsewhere")
    second = TinyExtractor()
    assert digest(summarize(everything(second, 12), open_image_set(folder), cache=tmp_path / "cache")) == expected
    assert (first.seen, second.seen) == (12, 0)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "5.png")
    assert digest(summarize(everything(second, 12), open_image_set(folder), cache=tmp_path / "cache")) != expected
    assert second.seen == 12


@pytest.mark.parametrize("left", [0, 5, 100, -1])
@pytest.mark.parametrize("name", ["sums.safetensors", "features.npy"])
def test_a_damaged_result_is_made_anew(tmp_path, whole, name, left):
    summarize(everything(TinyExtractor()), images(), cache=tmp_path)
    (path,) = tmp_path.glob(f"*/{name}")
    content = path.read_bytes()
    path.write_bytes(content[:left])
    again = TinyExtractor()
    assert digest(summarize(everything(again), images(), cache=tmp_path)) == whole
    assert again.seen == COUNT and path.read_bytes() == content


# Interrupted and shared


def stop_at(count: int) -> TinyExtractor:
    def stop(extractor: TinyExtractor) -> None:
        if extractor.seen == count:
            os.kill(os.getpid(), signal.SIGTERM)

    return TinyExtractor(disturb=stop)


def test_stopped_by_a_signal_it_goes_on_where_it_was(tmp_path, whole):
    with pytest.raises(Interrupted) as told:
        summarize(everything(stop_at(54)), images(), cache=tmp_path)
    assert str(told.value) == (
        "tiny of noise: SIGTERM received; 5 of 9 segments are kept, the same command goes on from there"
    )
    again = TinyExtractor()
    assert digest(summarize(everything(again), images(), cache=tmp_path)) == whole
    assert again.seen == 40


def test_a_damaged_segment_is_made_anew(tmp_path, whole):
    with pytest.raises(Interrupted):
        summarize(everything(stop_at(54)), images(), cache=tmp_path)
    path = sorted(tmp_path.glob("*/segments*/*"))[2]
    path.write_bytes(path.read_bytes()[:-1])
    again = TinyExtractor()
    assert digest(summarize(everything(again), images(), cache=tmp_path)) == whole
    assert again.seen == 50


@pytest.mark.parametrize("keep", [False, True])
def test_stopped_it_goes_on_though_other_things_are_asked_for(tmp_path, whole, keep):
    """Whether features are kept is not what sums follow from."""
    with pytest.raises(Interrupted):
        summarize(everything(stop_at(54), keep=keep), images(), cache=tmp_path)
    found = summarize(everything(TinyExtractor(), keep=not keep), images(), cache=tmp_path)
    assert (found.kept is None) == keep
    assert digest(summarize(everything(TinyExtractor()), images(), cache=tmp_path)) == whole


PROCESSES = f"""
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import torch
    torch.set_num_threads(1)
    from tiny_extractor import COUNT, TinyExtractor, digest, everything, images
    from fvq.evaluate import segments
    from fvq.evaluate.summary import summarize
    from fvq.runtime.errors import one_line_errors
    from fvq.runtime.processes import process_group

    segments._SHORTEST = 10
    work = Path(sys.argv[1])
"""
KILLS = """
    def start(disturb, extractor=None):
        child = os.fork()
        if child == 0:
            disturb()
            with one_line_errors():
                summarize(everything(extractor or TinyExtractor()), images(), cache=work / "cache")
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_in_the_third_write():
        write, written = segments.save_file, []
        def killed(tensors, path):
            write(tensors, path)
            written.append(path)
            if len(written) == 3:
                os.truncate(path, 50)
                kill()
        segments.save_file = killed

    def kill_in_the_sums():
        import fvq.evaluate.summary as module
        def killed(tensors, path):
            path.write_bytes(b"half")
            kill()
        module.save_file = killed

    def kill_while_features_are_gathered():
        from fvq.evaluate.summary import Merged
        def killed(self, tensors):
            add(self, tensors)
            added.append(tensors)
            if len(added) == 5:
                kill()
        added = []
        add, Merged.add = Merged.add, killed

    def stop(extractor):
        if extractor.seen == 24:  # of those that are left
            os.kill(os.getpid(), signal.SIGTERM)

    assert start(kill_in_the_third_write) == -signal.SIGKILL
    assert start(lambda: None, TinyExtractor(disturb=stop)) == 75
    assert start(kill_while_features_are_gathered) == -signal.SIGKILL
    assert start(kill_in_the_sums) == -signal.SIGKILL
    again = TinyExtractor()
    (work / "digest").write_text(digest(summarize(everything(again), images(), cache=work / "cache")))
    assert again.seen == 0, again.seen
"""
TWO = """
    import fcntl, threading, time
    from fvq.runtime.checkpoint import locked_in_turn

    rank = os.environ["RANK"]
    extractor = TinyExtractor()
    turn = work / "turn"

    def be_another_run():
        turn.mkdir()
        with (turn / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (turn / "held").touch()
            time.sleep(1.5)
            (turn / "done").touch()

    if rank == "1":
        threading.Thread(target=be_another_run).start()
    while not (turn / "held").exists():
        time.sleep(0.01)
    with process_group(), one_line_errors():
        with locked_in_turn(turn):
            assert (turn / "done").exists()
        found = summarize(everything(extractor), images(), cache=work / "cache")
        (work / f"two-{rank}").write_text(f"{digest(found)} {extractor.seen}")
        assert not list(work.glob("cache/*/segments*")) or rank != "0"
"""


def test_killed_at_any_write_it_ends_with_the_same_bits(tmp_path, whole):
    told = run_script(PROCESSES, KILLS, tmp_path)
    assert (tmp_path / "digest").read_text() == whole
    assert "fvq: tiny of noise: SIGTERM received; 4 of 9 segments are kept" in told
    (folder,) = (tmp_path / "cache").iterdir()
    assert {path.name for path in folder.iterdir()} >= {"features.npy", "sums.safetensors"}
    assert not list(folder.glob("segments*"))


TWO_RUNS = """
    import time

    def run(number, extractor):
        child = os.fork()
        if child == 0:
            sys.stderr = (work / f"told-{number}").open("w", buffering=1)
            with one_line_errors():
                found = summarize(everything(extractor), images(), cache=work / "cache")
                (work / f"run-{number}").write_text(f"{digest(found)} {extractor.seen}")
            sys.stderr.flush()
            os._exit(0)
        return child

    def until(condition):
        while not condition():
            time.sleep(0.01)

    def status(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def waits(number):
        told = work / f"told-{number}"
        return told.exists() and "waiting for it" in told.read_text()

    def hold(extractor):  # in the sixth of nine segments
        if extractor.seen == 54:
            (work / "first is at work").touch()
            until(lambda: waits("second") and (work / "third is gone").exists())

    first = run("first", TinyExtractor(disturb=hold))
    until((work / "first is at work").exists)
    second, third = run("second", TinyExtractor()), run("third", TinyExtractor())
    until(lambda: waits("third"))
    os.kill(third, signal.SIGTERM)
    assert status(third) == 75
    (work / "third is gone").touch()
    assert (status(first), status(second)) == (0, 0)
"""


def test_a_second_run_waits_for_the_first_and_takes_its_result(tmp_path, whole):
    """And a signal ends the wait of a third."""
    run_script(PROCESSES, TWO_RUNS, tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    assert (tmp_path / "run-first").read_text() == f"{whole} {COUNT}"
    assert (tmp_path / "run-second").read_text() == f"{whole} 0"
    assert (tmp_path / "told-second").read_text().count("waiting for it") == 1
    told = (tmp_path / "told-third").read_text()
    assert f"{folder}: SIGTERM received while another run is at work here" in told
    assert not (tmp_path / "run-third").exists() and not list(folder.glob("segments*"))


def test_file_systems_without_locks_do_without(tmp_path, whole, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert digest(summarize(everything(TinyExtractor()), images(), cache=tmp_path)) == whole


def test_a_full_disk_is_an_error_that_leaves_no_features(tmp_path, monkeypatch):
    def fill_the_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array_header_1_0", fill_the_disk)
    with pytest.raises(OSError, match=r"No space left on device: .*features\.npy"):
        summarize(everything(TinyExtractor()), images(), cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "segments-with-features"]
    monkeypatch.undo()
    monkeypatch.setattr(segments, "_SHORTEST", 10)
    again = TinyExtractor()
    assert summarize(everything(again), images(), cache=tmp_path).kept.shape == (COUNT, 8) and not again.seen


def test_a_stopped_pass_leaves_no_half_features(tmp_path):
    with pytest.raises(Interrupted):
        summarize(everything(stop_at(54)), images(), cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "segments-with-features"]


def test_two_processes_share_the_work_and_give_the_bits_of_one(tmp_path, whole):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(PROCESSES) + textwrap.dedent(TWO))
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("another run is at work here; waiting for it") == 1
    results = [(tmp_path / f"two-{rank}").read_text().split() for rank in (0, 1)]
    assert [result[0] for result in results] == [whole, whole]
    assert [int(result[1]) for result in results] == [50, 40]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_does_not_follow_the_number_of_images(tmp_path):
    """Features of 20,000 images more would take 40 MB, and their class scores as much."""
    script = """
        from fvq.evaluate.image_sets import TensorImages
        from fvq.evaluate.summary import Pass
        from tiny_extractor import random_images

        segments._SHORTEST, segments._MOST = 2000, 2  # a segment holds half of the images
        def peak(count):
            few = random_images(1000, 0, size=2)
            many = TensorImages(few.repeat(count // 1000, 1, 1, 1), "many")
            extractor = TinyExtractor(dimension=512, classes=512)
            wanted = Pass(extractor, groups=torch.arange(count) // 5000, batch_size=500)
            summarize(wanted, many, cache=work / str(count))
            # Not getrusage, whose peak is that of the process before, if this was higher.
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
        first = peak(4_000)
        print(first, peak(24_000), file=sys.stderr)
    """
    told = run_script(PROCESSES, script, tmp_path)
    few, many = map(float, told.splitlines()[-1].split())
    assert many - few < 20, "MB"
