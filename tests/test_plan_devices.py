"""Devices: which are known, hours at a share of their peaks, and steps that do not fit."""

import pytest
import torch
from test_plan import IMAGES, QUICK, parameters

from fvq.plan import measure
from fvq.plan.devices import GPUS, known_gpu
from fvq.plan.plan import plan_study
from fvq.plan.work import Work
from fvq.runtime.errors import UserError


def test_hours_at_a_share_of_the_peak():
    """312 TFLOP/s are 156 tera multiply-adds a second; the slower kinds take their own time."""
    a100 = GPUS["a100"]
    assert a100.hours(Work(bfloat16=156e12 * 3600), 1) == pytest.approx(1)
    assert a100.hours(Work(bfloat16=156e12 * 3600), 0.25) == pytest.approx(4)
    assert a100.hours(Work(tf32=78e12 * 3600, float32=9.75e12 * 3600), 1) == pytest.approx(2)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("this CPU", None),
    ],
)
def test_only_whole_sxm_modules_are_known(name, gpu):
    assert known_gpu(name) == (None if gpu is None else GPUS[gpu])


@pytest.fixture
def memory_of(monkeypatch):
    """Lets steps of more than so many images run out of memory, and notes all that are tried."""
    tried = []

    def limit(images):
        def build(parameters, row, every, batch, device):
            def step():
                tried.append(batch)
                if batch > images:
                    raise torch.OutOfMemoryError("CUDA out of memory.")

            return step

        monkeypatch.setattr(measure, "_tokenizer_step", build)
        return tried

    monkeypatch.setattr(measure, "_WARM_UP", 0)
    monkeypatch.setattr(measure, "_STEPS", (1, 1))
    return limit


@pytest.fixture(scope="module")
def row():
    """A tokenizer's, trained on four images at once."""
    return plan_study(parameters(train_tokenizer__accumulate=8, **QUICK), IMAGES, ["vq"]).rows[0]


def test_batches_that_do_not_fit_are_halved(memory_of, row):
    tried = memory_of(1)
    found = measure.measure_row(parameters(**QUICK), row, IMAGES, torch.device("cpu"))
    assert tried == [4, 2, 1]
    assert found.batch_size == 1
    assert found.flops_per_second * found.seconds_per_step == pytest.approx(2 * row.step.work(1).total)


def test_a_step_that_never_fits_is_a_users_error(memory_of, row):
    tried = memory_of(0)
    with pytest.raises(UserError, match=r"^--measure: vq does not fit: .* GB are free on cpu for one image a step$"):
        measure.measure_row(parameters(**QUICK), row, IMAGES, torch.device("cpu"))
    assert tried == [4, 2, 1]
