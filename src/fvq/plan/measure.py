"""The utilisation of the device that is there: real training steps against its peak."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fvq.config import Parameters
from fvq.generate.memory import free_memory
from fvq.generate.step import GeneratorStep
from fvq.plan.compute import build_step
from fvq.plan.devices import Device, known_gpu
from fvq.plan.images import Images
from fvq.plan.plan import Row
from fvq.runtime.errors import UserError

_WARM_UP = 2
_STEPS = (3, 20)
_SECONDS = 10.0


@dataclass(frozen=True)
class Measurement:
    """Of the training steps of one row on one device."""

    row: str
    kind: str
    device: str
    peak_from: str
    """``data sheet``, or ``matrix product``: measured in the same run"""
    batch_size: int
    """images at once: the row's, or as many as fit"""
    seconds_per_step: float
    flops_per_second: float
    utilization: float
    """share of the device's peak rates; a matrix product's rate may be exceeded by convolutions"""
    hours: float
    """of all the row's trainings on this device"""


def measure_row(parameters: Parameters, row: Row, images: Images, device: torch.device) -> Measurement:
    """Time some steps of the row's own model, with its batch and precision, on random images or tokens.

    After two steps that are not timed, at least 3 are, and up to 20 within ten seconds. A batch that does not fit into
    free memory is cut to what does, and halved as long as the device still runs out of it. The perceptual network has
    random weights, which cost the same.

    Raises:
        UserError: not even one image fits.
    """
    batch = min(-(-row.batch_size // row.accumulate), row.memory.largest_batch(free_memory(device)))
    build = _tokenizer_step if row.kind == "tokenizer" else _generator_step
    while batch:
        try:
            seconds = _time(build(parameters, row, images, batch, device), device)
            break
        except torch.OutOfMemoryError:
            batch //= 2
        gc.collect()  # only here does the error let go of the step
        torch.cuda.empty_cache()
    else:
        free = free_memory(device) / 1e9
        raise UserError(f"--measure: {row.row} does not fit: {free:.1f} GB are free on {device} for one image a step")
    work = row.step.work(batch)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    gpu, source = known_gpu(name), "data sheet"
    if gpu is None:
        gpu, source = _measured_device(_precision(parameters, row), device), "matrix product"
    utilization = gpu.hours(work, 1) * 3600 / seconds
    return Measurement(
        row=row.row,
        kind=row.kind,
        device=name,
        peak_from=source,
        batch_size=batch,
        seconds_per_step=seconds,
        flops_per_second=2 * work.total / seconds,
        utilization=utilization,
        hours=gpu.hours(row.training, utilization),
    )


def _precision(parameters: Parameters, row: Row) -> torch.dtype:
    settings = parameters.train_tokenizer if row.kind == "tokenizer" else parameters.train_generator
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def _tokenizer_step(
    parameters: Parameters, row: Row, images: Images, batch: int, device: torch.device
) -> Callable[[], object]:
    """A step with the discriminator, where the row has one."""
    settings = parameters.train_tokenizer.model_copy(update={"accumulate": 1, "adversarial_start": 0})
    step = build_step(parameters.tokenizer_config(row.row), settings, device)
    size = parameters.prepare_data.image_size
    images_u8 = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    rate = settings.scaled_learning_rate / 1000  # random images teach nothing, and should not upset the weights
    return lambda: step(0, images_u8, rate, lambda indices: None)


def _generator_step(
    parameters: Parameters, row: Row, images: Images, batch: int, device: torch.device
) -> Callable[[], object]:
    config = parameters.generator_config(row.row, images.classes)
    settings = parameters.train_generator.model_copy(update={"accumulate": 1, "sharding": "none"})
    step = GeneratorStep(config, settings, device)
    tokens = torch.randint(config.vocabulary_size, (batch, config.tokens))
    labels = torch.randint(config.classes, (batch,))
    return lambda: step(tokens, labels, parameters.generators[row.row].recipe.learning_rate / 1000)


def _measured_device(dtype: torch.dtype, device: torch.device) -> Device:
    """A device whose peak, for all precisions, is the rate of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = torch.randn(2, side, side, device=device, dtype=dtype).unbind()
    rate = 2 * side**3 / _time(lambda: left @ right, device)
    return Device(str(device), 0, rate, rate, rate)


def _time(run: Callable[[], object], device: torch.device) -> float:
    """The median of seconds that a call takes."""
    seconds: list[float] = []
    for number in range(_WARM_UP + _STEPS[1]):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - start)
        if len(seconds) >= _STEPS[0] and sum(seconds) >= _SECONDS:
            break
    return sorted(seconds)[len(seconds) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
