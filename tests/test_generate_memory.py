"""The planned batch: it fits, it is the largest useful one, and where nothing fits that is said before allocating."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_generate_llamagen import random_model

from fvq.generate import LlamaGen, SamplingSettings
from fvq.generate.decoding import Decoder
from fvq.generate.memory import _left_to_control_groups, bytes_per_image, free_memory, planned_batch_size
from fvq.generate.sizes import published_config
from fvq.runtime.errors import UserError


def on_meta(size: str) -> LlamaGen:
    with torch.device("meta"):
        return LlamaGen(published_config(size))


@given(free=st.integers(2**24, 2**36), guided=st.booleans())
def test_the_plan_fits_and_is_the_largest(free, guided):
    model = random_model()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    planned = planned_batch_size(model, guided=guided, free=free)
    each = bytes_per_image(model.config, 4, guided=guided)
    assert planned * each + weights <= 0.8 * free
    assert planned in (1, 2, 4, 8, 16, 32, 64)
    assert planned == 64 or 2 * planned * each + weights > 0.8 * free


def test_the_cache_is_most_of_what_is_reckoned():
    model = random_model(grid=(8, 8), width=64, depth=3)
    for guided in (False, True):
        settings = SamplingSettings(cfg_scale=2.0 if guided else 1.0, cfg_start=0, temperature=1, top_k=0, top_p=1)
        decoder = Decoder(model, settings, 10)
        batch = decoder.new_batch(torch.zeros(10, dtype=torch.int64), torch.ones(10, 64, dtype=torch.float64))
        held = sum(getattr(batch, name).nbytes for name in ("labels", "uniforms", "tokens", "cache"))
        reckoned = 10 * bytes_per_image(model.config, 4, guided=guided)
        assert held <= reckoned <= 2 * held


def test_published_sizes_on_a_gpu_of_80_gigabytes():
    """In bfloat16, guided: the cache of GPT-XL takes 94 MB an image and that of GPT-3B 157 MB."""
    for size, cache in (("XL", 94e6), ("3B", 157e6)):
        each = bytes_per_image(published_config(size), 2, guided=True)
        assert cache <= each <= 1.15 * cache
    assert planned_batch_size(on_meta("3B").bfloat16(), guided=True, free=80 * 10**9) >= 350


def test_too_little_memory_is_one_line():
    with pytest.raises(UserError, match=r"sampling: 0.0 GB are free on cpu, and this generator needs 0.0 GB"):
        planned_batch_size(random_model(), guided=True, free=1000)
    assert free_memory(torch.device("cpu")) > 2**24


def test_several_processes_share_the_memory(monkeypatch):
    alone = free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_around_the_process_counts_its_cached_files_as_free(tmp_path, version):
    if version == 2:
        own, folder, names = "0::/job/step\n", tmp_path / "job", ("memory.max", "memory.current")
        (folder / "step").mkdir(parents=True)
        (folder / "step/memory.max").write_text("max\n")
    else:
        own, folder = "5:cpu:/\n3:memory:/job/step\n", tmp_path / "memory/job"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder.mkdir(parents=True)
    for name, value in zip(names, ("1000", "900"), strict=True):
        (folder / name).write_text(value)
    (folder / "memory.stat").write_text("anon 500\ninactive_file 300\nactive_file 20\n")
    (tmp_path / "own").write_text(own)
    assert _left_to_control_groups(tmp_path, tmp_path / "own") == [420]
    assert _left_to_control_groups(tmp_path, tmp_path / "none") == []
