"""What steps cost: multiply-adds by hand, and saved bytes against real steps."""

import contextlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from fvq.generate.settings import GeneratorTraining
from fvq.generate.sizes import published_config
from fvq.generate.step import GeneratorStep
from fvq.plan import compute
from fvq.plan.compute import Costs, build_step, perceptual_network, weightless_step
from fvq.plan.memory import generator_memory, tokenizer_memory, tokenizer_weights
from fvq.plan.tracing import AsOnGPU, SavedBytes, trace, weightless
from fvq.plan.work import Work
from fvq.quantize import VQBridge
from fvq.quantize.cost import multiply_adds
from fvq.tokenizer import Architecture, Tokenizer, TokenizerConfig
from fvq.tokenizer.discriminator import PatchDiscriminator
from fvq.tokenizer.settings import TokenizerTraining

BRIDGE = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "layout": "grid", "block": "vit"}


def tokenizer_config(**changes) -> TokenizerConfig:
    fields = {
        "image_size": 32,
        "architecture": Architecture(
            channels=8, multipliers=(1, 2), residual_blocks=1, attention=False, latent_channels=8, pixel_shuffle=2
        ),
        "quantizer": "vq",
        "codebook_size": 64,
        "code_dim": 8,
        "commitment_weight": 0.25,
        "bridge": None,
        "frozen": False,
    }
    return TokenizerConfig.model_validate({**fields, **changes})


def training(**changes) -> TokenizerTraining:
    fields = {
        "batch_size": 4,
        "accumulate": 1,
        "precision": "float32",
        "learning_rate": 1e-4,
        "reference_batch_size": None,
        "betas": (0.9, 0.95),
        "gradient_clip": 1.0,
        "ema_decay": None,
        "reconstruction_weight": 1.0,
        "perceptual_weight": 0.0,
        "perceptual_weights": None,
        "adversarial_weight": 0.0,
        "adversarial_start": 0,
        "crop": None,
        "flip": False,
        "log_every": 1,
        "grid_every": 0,
        "probe_images": 0,
    }
    return TokenizerTraining.model_validate({**fields, **changes})


def saved_bytes(cost, images):
    return cost.saved_constant + cost.saved_per_image * images


def constant_network():
    """LPIPS without its random weights, which take a second to draw."""
    with torch.device("meta"):
        network = perceptual_network()
    network = network.to_empty(device="cpu")
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.fill_(0.01)
    return network


def test_a_convolution_and_a_linear_layer_by_hand():
    """Forward one product, backward one for the weight and one for the input."""
    layer = weightless(lambda: nn.Conv2d(5, 7, 3, padding=1))
    linear = weightless(lambda: nn.Linear(11, 13))

    def convolve(images):
        layer(torch.empty(images, 5, 8, 6, requires_grad=True)).sum().backward()

    def multiply(images):
        linear(torch.empty(images * 3, 11)).sum().backward()

    assert trace(convolve, [layer]).per_image == Work(tf32=3 * 8 * 6 * 5 * 7 * 9)
    assert trace(multiply, [linear]).per_image == Work(float32=2 * 3 * 11 * 13)
    assert trace(multiply, [linear]).constant == Work()


@pytest.mark.parametrize(("size", "billions"), [(16384, 4.30), (262144, 55.83)])
def test_the_bridge_is_the_constant_part(size, billions):
    """Table 10's multiply-adds, forward; with backward 3 times as much, and attention 3.5 times."""
    config = tokenizer_config(
        quantizer="fvq", codebook_size=size, code_dim=256, bridge={**BRIDGE, "patch": None, "width": 256, "depth": 2}
    )
    with torch.device("meta"):
        bridge = VQBridge(size, 256, heads=2)
    forward = multiply_adds(bridge, size, 256)
    attention = 2 * 2 * (size // bridge.patch) ** 2 * 256
    cost = Costs().quantizer(config, training())
    assert forward / 1e9 == pytest.approx(billions, abs=0.0051)
    assert cost.constant.total == 3 * forward + attention / 2
    tokens = config.tokens
    projections = 3 * 2 * tokens * 8 * 256  # to the codes and back
    assert cost.per_image.total == projections + tokens * size * 256
    assert (cost.search.tokens, cost.search.codes, cost.search.dim) == (tokens, size, 256)


def test_a_generator_by_hand():
    """2 N T forward and 4 N T backward, N the parameters in products; attention and embeddings make the difference."""
    config = published_config("B")
    cost = Costs().generator_step(config, bfloat16=True)
    width, hidden = config.width, config.feedforward_width
    matrices = config.depth * (4 * width**2 + 3 * width * hidden) + width * config.vocabulary_size
    attention = config.depth * 2 * config.tokens**2 * width
    assert cost.per_image == Work(bfloat16=3 * matrices * config.tokens + 3.5 * attention)
    assert cost.constant == Work()
    everything = matrices + (config.vocabulary_size + config.classes + 1) * width
    assert 2 * cost.per_image.total == pytest.approx(6 * everything * config.tokens, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_generators_saved_bytes_are_those_of_a_real_step(precision):
    """Deeper than what is traced, and with another batch."""
    config = published_config(
        "B", vocabulary_size=64, classes=3, grid=(4, 4), width=32, depth=5, heads=2, drop_path=0.1
    )
    settings = GeneratorTraining(
        weight_decay=0.05,
        betas=(0.9, 0.95),
        gradient_clip=1.0,
        accumulate=1,
        precision=precision,
        compile=False,
        sharding="none",
        log_every=1,
    )
    step = GeneratorStep(config, settings, torch.device("cpu"))
    saved = SavedBytes([step.model])
    with AsOnGPU(), saved:
        step(torch.randint(64, (3, 16)), torch.randint(3, (3,)), 1e-4)
    cost = Costs().generator_step(config, bfloat16=precision == "bfloat16")
    assert saved_bytes(cost, 3) == pytest.approx(saved.peak, rel=1e-3)
    memory = generator_memory(cost, config)
    assert memory.total(4) - memory.total(3) == cost.saved_per_image + 6 * 16 * 64  # and the logits of 16 tokens


def test_sampling_attends_to_half_of_the_tokens():
    config = published_config("B")
    plain = Costs().sample(config, guided=False, bfloat16=True).per_image.bfloat16
    width, tokens = config.width, config.tokens
    blocks = tokens * config.depth * (4 * width**2 + 3 * width * config.feedforward_width)
    attention = config.depth * 2 * width * tokens * (tokens + 1) / 2
    output = tokens * width * config.vocabulary_size
    assert plain == pytest.approx(blocks + attention + output, rel=1e-12)
    guided = Costs().sample(config, guided=True, bfloat16=True).per_image.bfloat16
    assert guided == pytest.approx(2 * (blocks + attention) + output, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"quantizer": "fvq", "bridge": BRIDGE}, {"precision": "bfloat16", "adversarial_weight": 0.1}),
        ({"quantizer": "residual", "bridge": BRIDGE, "options": {"inner": "fvq", "depth": 2}}, {}),
        ({}, {"perceptual_weight": 1.0}),
    ],
    ids=["fvq", "residual", "perceptual"],
)
def test_saved_bytes_are_those_of_a_real_step(monkeypatch, changes, settings):
    """Another batch than those that were traced, on the CPU; the parts that are counted apart add up to the whole."""
    config, chosen = tokenizer_config(**changes), training(**settings)
    monkeypatch.setattr(compute, "perceptual_network", constant_network)
    step = build_step(config, chosen, torch.device("cpu"))
    modules = [step.tokenizer, *([step.perceptual] if step.perceptual else [])]
    saved = SavedBytes([*modules, *([step.adversary.module] if step.adversary else [])])
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with AsOnGPU(), saved:
        step(0, images, 1e-4, lambda indices: None)
    assert saved.now == 0
    # But for scalars, which are a few bytes.
    assert saved_bytes(Costs().tokenizer_step(config, chosen), 3) == pytest.approx(saved.peak, rel=1e-3)


def test_parts_add_up_to_the_step_as_a_whole():
    config = tokenizer_config(quantizer="fvq", bridge=BRIDGE)
    settings = training(adversarial_weight=0.1, precision="bfloat16")
    step = weightless_step(config, settings)

    def run(images):
        step(0, torch.empty(images, 3, 32, 32, dtype=torch.uint8), 0.0, lambda indices: None)

    whole = trace(run, [step.tokenizer, step.adversary.module])
    cost = Costs().tokenizer_step(config, settings)
    assert cost.per_image == whole.per_image
    assert cost.constant == whole.constant


def test_the_gpus_autocast_is_imitated():
    """Against tensors that pass for CUDA's, under CUDA's own autocast: forward only, as no driver need be there."""
    config = tokenizer_config()

    def forward(tokenizer, perceptual, discriminator, images):
        reconstruction, quantized = tokenizer(images)
        error = perceptual(reconstruction.float(), images).float().mean() + F.mse_loss(reconstruction.float(), images)
        return error + discriminator(reconstruction.float()).float().mean() + quantized.loss

    def held(device, autocast):
        with FakeTensorMode(), torch.device(device):
            modules = [Tokenizer(config).train(), perceptual_network(), PatchDiscriminator()]
            for part in modules[1].modules():  # lpips makes its constants where no device is named
                part._buffers.update({name: torch.empty(value.shape) for name, value in part._buffers.items()})
            saved = SavedBytes(modules)
            with autocast, saved:
                loss = forward(*modules, torch.empty(2, 3, 32, 32))
            peak = saved.peak
            del loss
        return peak

    @contextlib.contextmanager
    def cuda():
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()

    @contextlib.contextmanager
    def imitated():
        with AsOnGPU(), torch.autocast("cpu", torch.bfloat16):
            yield

    on_gpu = held("cuda", cuda())
    assert held("cpu", imitated()) == pytest.approx(on_gpu, rel=1e-3)
    assert held("cpu", torch.autocast("cpu", torch.bfloat16)) < 0.97 * on_gpu


def test_memory_by_parts():
    config = tokenizer_config(quantizer="fvq", bridge=BRIDGE)
    settings = training(ema_decay=0.99, adversarial_weight=0.1)
    memory = tokenizer_memory(Costs(), config, settings)
    step = build_step(config, settings, torch.device("cpu"))
    learning = [p for module in (step.tokenizer, step.adversary.module) for p in module.parameters()]
    step(0, torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), 1e-4, lambda indices: None)
    moments = [
        value
        for optimizer in (step.descent.optimizer, step.adversary.optimizer)
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    assert memory.gradients == sum(p.nbytes for p in learning)
    assert memory.optimizer == sum(value.nbytes for value in moments)
    assert memory.average == sum(p.nbytes for p in step.tokenizer.parameters())
    fits = memory.largest_batch(1e9)
    assert memory.total(fits) <= 0.9e9 < memory.total(fits + 1)
    assert memory.largest_batch(1000) == 0


def test_quantizers_that_decide_from_values_say_so():
    config = tokenizer_config(quantizer="cvq")
    cost = Costs().quantizer(config, training())
    assert cost.per_image.total >= config.tokens * 64 * 8
    assert len(cost.notes) == 1 and "quantizer cvq" in next(iter(cost.notes))


def test_frozen_weights_have_no_projector():
    config = tokenizer_config(quantizer="fvq", bridge=BRIDGE)
    frozen = tokenizer_weights(config.model_copy(update={"frozen": True}))
    assert frozen.all == tokenizer_weights(tokenizer_config()).all < tokenizer_weights(config).all
