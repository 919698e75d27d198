"""Writing token tables: killed and started again, by any number of processes, always the same files."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from test_tokens_table import INFO, encoder, shards, small_pieces

from fvq.runtime.errors import UserError
from fvq.runtime.interruption import Interrupted
from fvq.tokens import TokenBatch, link_shards, open_token_table, write_token_shards, writer


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    """Four shards of several row groups."""
    small_pieces(monkeypatch, INFO, shards=4, images_per_group=5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files' contents when nothing happens."""
    path = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch, INFO, shards=4, images_per_group=5)
        write_token_shards(path, encoder(INFO), INFO)
    return contents(path)


def visible(folder):
    """All files but the lock, leftovers of writers included."""
    return sorted(path for path in folder.iterdir() if path.name != ".lock")


def contents(folder):
    return {path.name: path.read_bytes() for path in visible(folder)}


def inodes(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards(folder)}


def counted(encode, calls):
    def counting(image_ids):
        calls.append(image_ids)
        return encode(image_ids)

    return counting


def failing(shards_before, error):
    """Encodes some shards and ends in the middle of the next one."""
    done = []

    def encode(image_ids):
        for number, batch in enumerate(encoder(INFO)(image_ids)):
            if len(done) == shards_before and number == 2:
                raise error
            yield batch
        done.append(image_ids)

    return encode


def test_a_killed_writer_goes_on(tmp_path, undisturbed):
    with pytest.raises(KeyboardInterrupt):
        write_token_shards(tmp_path, failing(2, KeyboardInterrupt()), INFO)
    kept = inodes(tmp_path)
    assert list(kept) == ["tokens-00000-of-00004.parquet", "tokens-00001-of-00004.parquet"]
    (tmp_path / ".tokens-00002-of-00004.parquet.0a1b.tmp.parquet").write_text("left by a kill")
    calls = []
    write_token_shards(tmp_path, counted(encoder(INFO), calls), INFO)
    assert len(calls) == 2
    assert contents(tmp_path) == undisturbed
    assert kept.items() <= inodes(tmp_path).items()
    write_token_shards(tmp_path, counted(encoder(INFO), calls), INFO)
    assert len(calls) == 2


def test_damaged_shards_are_written_again(tmp_path, undisturbed, capfd):
    write_token_shards(tmp_path, encoder(INFO), INFO)
    kept = inodes(tmp_path)
    cut, flipped, *_ = shards(tmp_path)
    cut.write_bytes(undisturbed[cut.name][:-100])
    column = pq.read_metadata(flipped).row_group(1).column(3)
    middle = column.data_page_offset + column.total_compressed_size // 2
    damaged = bytearray(undisturbed[flipped.name])
    damaged[middle] ^= 1
    flipped.write_bytes(damaged)
    calls = []
    write_token_shards(tmp_path, counted(encoder(INFO), calls), INFO)
    assert len(calls) == 2 and contents(tmp_path) == undisturbed
    told = capfd.readouterr().err.splitlines()
    assert [f"{path}: not a readable Parquet file" in line for path, line in zip((cut, flipped), told, strict=True)]
    assert all(line.endswith("; it is written again") for line in told)
    for name in list(kept)[2:]:
        assert inodes(tmp_path)[name] == kept[name]


def test_a_second_writer_is_refused_and_disturbs_nothing(tmp_path, undisturbed):
    folder, refusals = tmp_path / "tokens", []

    def encode(image_ids):
        left = folder / ".tokens-00003-of-00004.parquet.0a1b.tmp.parquet"  # as while a shard is written
        left.touch()
        with pytest.raises(UserError) as caught:
            write_token_shards(folder, encoder(INFO), INFO)
        refusals.append(str(caught.value))
        left.unlink()  # which fails where it is gone
        yield from encoder(INFO)(image_ids)

    write_token_shards(folder, encode, INFO)
    assert refusals == [f"{folder}: another process writes here at this moment; wait for it or stop it"] * 4
    assert contents(folder) == undisturbed
    write_token_shards(folder, encoder(INFO), INFO)


def test_images_of_a_shard_are_asked_for_in_ascending_order(tmp_path, undisturbed):
    calls = []
    write_token_shards(tmp_path, counted(encoder(INFO), calls), INFO)
    for path, asked in zip(shards(tmp_path), calls, strict=True):
        stored = pq.read_table(path)["image_id"].to_pylist()[::2]
        assert asked.tolist() == sorted(stored) != stored


def test_a_process_whose_torchrun_is_gone_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "is_orphaned", lambda parent: parent == os.getppid() and len(shards(tmp_path)) > 0)
    with pytest.raises(Interrupted, match=r"^encoding: a signal to another process received; the same command goes "):
        write_token_shards(tmp_path, encoder(INFO), INFO)
    assert 1 <= len(shards(tmp_path)) < 4


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_schedulers_signal_stops_it_between_batches(tmp_path, undisturbed, name):
    def encode(image_ids):
        for number, batch in enumerate(encoder(INFO)(image_ids)):
            if len(shards(tmp_path)) == 1 and number == 1:
                os.kill(os.getpid(), getattr(signal, name))
            yield batch

    with pytest.raises(Interrupted, match=f"^encoding: {name} received; the same command goes on with the shards that"):
        write_token_shards(tmp_path, encode, INFO)
    kept = inodes(tmp_path)
    assert 1 <= len(kept) < 4
    write_token_shards(tmp_path, encoder(INFO), INFO)
    assert contents(tmp_path) == undisturbed and kept.items() <= inodes(tmp_path).items()


class Group:
    """Processes played by threads."""

    def __init__(self, monkeypatch, count):
        self.count, self.me, self.stopped = count, threading.local(), None
        self.barrier, self.values = threading.Barrier(count, timeout=20), [None] * count
        monkeypatch.setattr(writer, "number_of_processes", lambda: count)
        monkeypatch.setattr(writer, "process_number", lambda: self.me.number)
        monkeypatch.setattr(writer, "gather", self.gather)
        monkeypatch.setattr(writer, "wait_for_all", self.barrier.wait)
        monkeypatch.setattr(writer, "in_any_process", lambda flag: any(self.gather(flag)))
        monkeypatch.setattr(writer, "is_orphaned", lambda _: self.me.number == self.stopped)  # threads see no signals

    def gather(self, value):
        self.values[self.me.number] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def write(self, folder, encode, info=INFO):
        def run(number):
            self.me.number = number
            write_token_shards(folder, encode, info)

        with ThreadPoolExecutor(self.count) as threads:
            done = [threads.submit(run, number) for number in range(self.count)]
        return [one.exception() for one in done]


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_any_number_of_processes_writes_the_same(tmp_path, monkeypatch, undisturbed, processes):
    calls = []
    assert not any(Group(monkeypatch, processes).write(tmp_path, counted(encoder(INFO), calls)))
    assert contents(tmp_path) == undisturbed
    assert len(calls) == 4  # each shard by one of them
    shards(tmp_path)[1].unlink()
    shards(tmp_path)[2].unlink()
    kept = inodes(tmp_path)
    assert not any(Group(monkeypatch, processes + 1).write(tmp_path, counted(encoder(INFO), calls)))
    assert len(calls) == 6 and contents(tmp_path) == undisturbed and kept.items() <= inodes(tmp_path).items()


def test_processes_stop_together_after_their_present_shards(tmp_path, monkeypatch, undisturbed):
    group, calls = Group(monkeypatch, 2), []

    def encode(image_ids):
        calls.append(image_ids)
        if group.me.number == 1:
            group.stopped = 1
        yield from encoder(INFO)(image_ids)

    errors = group.write(tmp_path, encode)
    assert [type(error) for error in errors] == [Interrupted] * 2 and len(calls) == 2
    assert all("a signal to another process received" in str(error) for error in errors)
    assert list(contents(tmp_path)) == ["tokens-00000-of-00004.parquet"]  # what the other one had in hand
    assert not any(Group(monkeypatch, 1).write(tmp_path, encoder(INFO)))
    assert contents(tmp_path) == undisturbed


def test_two_processes_of_torchrun_write_the_same(tmp_path, undisturbed):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import pytest
        from test_tokens_table import INFO, encoder, small_pieces
        from fvq.runtime.processes import process_group
        from fvq.tokens import write_token_shards
        with process_group(), pytest.MonkeyPatch.context() as patch:
            small_pieces(patch, INFO, shards=4, images_per_group=5)
            write_token_shards(Path(sys.argv[2]), encoder(INFO), INFO)
            assert len(list(Path(sys.argv[2]).glob("*.parquet"))) == 4  # for either, all are there
        """)
    )
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script))
    subprocess.run(
        [*command, str(Path(__file__).parent), str(tmp_path / "tokens")],
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert contents(tmp_path / "tokens") == undisturbed


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"seed": 1}, r"tokens-00000-of-00004\.parquet: belongs to another table; remove .*tokens first$"),
        ({"tokenizer_sha256": "cd" * 32}, r"tokens-00000-of-00004\.parquet: belongs to another table"),
        ({"images": 100}, r"tokens-00000-of-00004\.parquet: is no shard of this table, which has 8; remove .* first$"),
    ],
)
def test_shards_of_another_table_are_refused(tmp_path, undisturbed, changes, complaint):
    folder = tmp_path / "tokens"
    write_token_shards(folder, encoder(INFO), INFO)
    with pytest.raises(UserError, match=complaint):
        write_token_shards(folder, encoder(INFO), replace(INFO, **changes))
    assert contents(folder) == undisturbed


def changed(**changes):
    """What ``encode`` gives, with the third batch changed."""

    def encode(image_ids):
        for number, batch in enumerate(encoder(INFO, 5)(image_ids)):
            yield TokenBatch(**(vars(batch) | changes)) if number == 2 else batch

    return encode


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"codes": torch.full((5, 12), 1000)}, "codes from 1000 to 1000; 0 to 999 are allowed"),
        ({"codes": torch.full((5, 12), -1)}, "codes from -1 to -1"),
        ({"labels": torch.tensor([0, 1, 3, 0, 0])}, "labels from 0 to 3; 0 to 2 are allowed"),
        ({"view": "upside_down"}, "view 'upside_down' is none of center, center_flip"),
        ({"view": "center_flip"}, "other images than were asked for, or in another order"),
        ({"image_ids": torch.arange(5)}, "other images than were asked for, or in another order"),
        (
            {"codes": torch.zeros(5, 11, dtype=torch.int64)},
            r"shapes \(5, 11\).*\(B, 12\), \(B,\), \(B,\) were expected",
        ),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"shapes \(5, 12\), \(5,\), \(4,\)"),
        ({"image_ids": torch.arange(6)}, r"shapes \(5, 12\), \(6,\), \(5,\)"),
    ],
)
def test_bad_batches_are_refused(tmp_path, changes, complaint):
    with pytest.raises(UserError, match=rf"tokens-00000-of-00004\.parquet: .*{complaint}"):
        write_token_shards(tmp_path, changed(**changes), INFO)
    assert not visible(tmp_path)


def test_missing_images_are_refused(tmp_path):
    def encode(image_ids):
        yield from list(encoder(INFO)(image_ids))[:-1]

    with pytest.raises(UserError, match=r"tokens-00000-of-00004\.parquet: view 'center_flip' came for 7 of 12 images"):
        write_token_shards(tmp_path, encode, INFO)
    assert not visible(tmp_path)


def test_full_disk_leaves_whole_shards_alone(tmp_path, monkeypatch):
    write_table, groups = pq.ParquetWriter.write_table, []

    def full(self, table, **options):
        groups.append(table.num_rows)
        if len(groups) > 8:  # in the second shard, trials of encodings counted
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(self, table, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(OSError, match=r"No space left") as caught:
            write_token_shards(tmp_path, encoder(INFO), INFO)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in visible(tmp_path)] == ["tokens-00000-of-00004.parquet"]


def test_linked_shards_are_the_same_files(tmp_path, monkeypatch, undisturbed):
    write_token_shards(tmp_path / "runs", encoder(INFO), INFO)
    link_shards(tmp_path / "runs", tmp_path / "results" / "tokens")
    assert inodes(tmp_path / "runs") == inodes(tmp_path / "results" / "tokens")
    assert open_token_table(tmp_path / "results" / "tokens").images == 50

    def no_links(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    link_shards(tmp_path / "runs", tmp_path / "results" / "tokens")
    assert contents(tmp_path / "results" / "tokens") == undisturbed
    assert not inodes(tmp_path / "runs").items() & inodes(tmp_path / "results" / "tokens").items()
