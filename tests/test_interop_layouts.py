"""Published checkpoints against their published forward pass, and there and back with every bit."""

import argparse
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import Published, autoencoder, with_bridge

from fvq.interop.exporting import export_tokenizer
from fvq.interop.importing import import_tokenizer
from fvq.runtime.errors import UserError
from fvq.tokenizer import Architecture, Tokenizer, TokenizerConfig

SIZE = 16
BRIDGED = {"codes": 256, "dim": 8}

STATES = {
    "llamagen": autoencoder(),
    "llamagen, three levels": autoencoder(multipliers=(1, 1, 2), blocks=2, dim=4, codes=100),
    "fvq": autoencoder(dim=12, multipliers=(1, 2, 2)),
    "fvq-vit": with_bridge(autoencoder(**BRIDGED), side=4, width=16),
    "fvq-vit, wide": with_bridge(autoencoder(**BRIDGED), side=2, width=24, depth=1),
    "fvq-dit": with_bridge(autoencoder(**BRIDGED), side=4, width=16, labels=1001),
    "fvq-dit, unconditional": with_bridge(autoencoder(**BRIDGED), side=2, width=16, labels=1, depth=3),
    "taming": autoencoder(taming=True, multipliers=(1, 1, 2), blocks=2, dim=16),
}


def images(count=3, size=SIZE):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def save(path, content):
    torch.save(content, path)
    return path


def layout_of(case):
    return case.split(",")[0]


@pytest.mark.parametrize("case", STATES)
def test_the_forward_pass_is_the_published_one(case, tmp_path):
    state, layout = STATES[case], layout_of(case)
    path = save(tmp_path / "published.pt", {"model": state})
    named = layout if layout in ("llamagen", "fvq") else None
    imported = import_tokenizer(path, layout=named, image_size=SIZE)
    assert imported.layout == layout
    published = Published(state, l2_norm=layout == "llamagen")
    indices = published.encode(images())
    assert len(indices.unique()) > 8  # or equal indices would say little
    assert torch.equal(imported.tokenizer.encode(images()), indices)
    wanted = published.decode(indices)
    assert wanted.std() > 0.1
    reconstruction, _ = imported.tokenizer(images())
    torch.testing.assert_close(reconstruction.double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(imported.tokenizer.decode(indices).double(), wanted.clamp(-1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", STATES)
def test_the_exported_form_is_the_same_tokenizer(case, tmp_path):
    """As the published code reads it: the bridge is gone, its codes are there."""
    path = save(tmp_path / "published.pt", {"model": STATES[case]})
    layout = layout_of(case)
    imported = import_tokenizer(path, layout=None if layout == "taming" or "-" in layout else layout, image_size=SIZE)
    exported = export_tokenizer(imported.tokenizer)
    assert exported.l2_norm == (layout == "llamagen")
    published = Published(exported.tensors, l2_norm=exported.l2_norm)
    indices = published.encode(images())
    assert torch.equal(indices, imported.tokenizer.encode(images()))
    reconstruction, _ = imported.tokenizer(images())
    torch.testing.assert_close(reconstruction.double(), published.decode(indices), rtol=0, atol=1e-5)
    if imported.tokenizer.config.quantizer == "fvq":
        mapped = imported.tokenizer.quantizer.mapped_codebook()
        assert torch.equal(exported.tensors["quantize.embedding.weight"], mapped)


@settings(max_examples=12, deadline=None)
@given(
    layout=st.sampled_from(["llamagen", "fvq"]),
    multipliers=st.lists(st.integers(1, 3), max_size=2),
    blocks=st.integers(1, 2),
    codes=st.integers(2, 40),
    dim=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_there_and_back_keeps_every_bit(tmp_path_factory, layout, multipliers, blocks, codes, dim, seed):
    folder = tmp_path_factory.mktemp("there-and-back")
    state = autoencoder(codes=codes, dim=dim, multipliers=(1, *multipliers), blocks=blocks, seed=seed)
    imported = import_tokenizer(save(folder / "a.pt", {"model": state}), layout=layout)
    imported.tokenizer.save(folder / "a.safetensors")
    back = export_tokenizer(Tokenizer.load(folder / "a.safetensors"))
    assert back.l2_norm == (layout == "llamagen")
    assert back.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back.tensors[name], tensor), name


def test_taming_tensors_keep_their_bits(tmp_path):
    """Through LlamaGen's names: the decoder's levels are counted from the other end, the middle is numbered."""
    state = STATES["taming"]
    path = save(tmp_path / "vqgan.ckpt", {"state_dict": state})
    tensors = export_tokenizer(import_tokenizer(path).tokenizer).tensors
    used = tensors.pop("quantize.codebook_used")
    assert not used.any() and used.shape == (65536,)
    renamed = {}
    for name, tensor in state.items():
        for old, new in (("down", "conv_blocks"), ("block", "res"), ("mid.block_1", "mid.0"), ("mid.attn_1", "mid.1")):
            name = name.replace(f".{old}.", f".{new}.")
        name = name.replace(".mid.block_2.", ".mid.2.")
        if ".up." in name:
            _, _, level, *rest = name.split(".")
            name = ".".join(["decoder.conv_blocks", str(2 - int(level)), *rest])
        renamed[name] = tensor
    assert renamed.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in renamed.items())


def test_sizes_are_told_by_the_tensors(tmp_path):
    path = save(tmp_path / "bridge.pt", {"model": STATES["fvq-vit, wide"]})
    config = import_tokenizer(path, heads=2, image_size=32).tokenizer.config
    assert config.architecture == Architecture(
        channels=32, multipliers=(1, 2), residual_blocks=1, attention=True, latent_channels=16, pixel_shuffle=1
    )
    assert (config.quantizer, config.codebook_size, config.code_dim, config.image_size) == ("fvq", 256, 8, 32)
    assert config.bridge.model_dump() == {
        "patch": 4,
        "width": 24,
        "depth": 1,
        "heads": 2,
        "layout": "grid",
        "block": "vit",
    }
    path = save(tmp_path / "plain.pt", {"model": STATES["llamagen, three levels"]})
    config = import_tokenizer(path, layout="llamagen").tokenizer.config
    assert (config.architecture.multipliers, config.architecture.residual_blocks) == ((1, 1, 2), 2)
    assert (config.image_size, config.grid, config.codebook_size, config.code_dim) == (256, (64, 64), 100, 4)


def test_training_checkpoints_give_up_their_model_or_its_average(tmp_path):
    model, average = autoencoder(seed=1), autoencoder(seed=2)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    content = {
        "model": OrderedDict(model),
        "ema": OrderedDict(average),
        "optimizer": optimizer.state_dict(),
        "discriminator": {"main.0.weight": torch.ones(2)},
        "steps": 10000,
        "args": argparse.Namespace(vq_model="VQ-16", lr=1e-4, betas=(0.9, 0.95), ema=True, cloud_save_path=None),
    }
    path = save(tmp_path / "0010000.pt", content)
    taken = import_tokenizer(path, layout="fvq")
    assert taken.left_out == ("ema", "optimizer", "discriminator", "steps", "args", "quantize.codebook_used")
    averaged = import_tokenizer(path, layout="fvq", ema=True)
    assert averaged.left_out[0] == "model"
    for imported, state in ((taken, model), (averaged, average)):
        assert torch.equal(imported.tokenizer.quantizer.codebook, state["quantize.embedding.weight"])
        assert torch.equal(imported.tokenizer.decoder.conv_out.bias, state["decoder.conv_out.bias"])


def test_labels_but_the_unconditional_one_and_losses_are_left_out(tmp_path):
    path = save(tmp_path / "dit.pt", {"model": STATES["fvq-dit"]})
    imported = import_tokenizer(path)
    assert imported.left_out == (
        "quantize.codebook_used",
        "quantize.qbridge.pos_embed (fixed)",
        "1,000 class labels of the bridge",
    )
    labels = STATES["fvq-dit"]["quantize.qbridge.y_embedder.embedding_table.weight"]
    assert torch.equal(imported.tokenizer.quantizer.projector.labels.weight, labels[1000:])
    losses = {"loss.discriminator.main.0.weight": torch.ones(1), "loss.perceptual_loss.lin0.model.1.weight": labels}
    path = save(tmp_path / "vqgan.ckpt", {"state_dict": {**STATES["taming"], **losses}, "global_step": 7})
    assert import_tokenizer(path).left_out == ("global_step", "2 tensors of the losses (loss.*)")


def test_a_bare_state_dict_is_read(tmp_path):
    state = STATES["fvq"]
    imported = import_tokenizer(save(tmp_path / "bare.pt", state), layout="fvq")
    assert torch.equal(imported.tokenizer.quantizer.codebook, state["quantize.embedding.weight"])


def tokenizer(quantizer="vq", architecture=(), **changes):
    sizes = {"channels": 32, "multipliers": (1, 2), "residual_blocks": 1, "attention": True, "latent_channels": 8}
    return Tokenizer(
        TokenizerConfig(
            **{
                "image_size": SIZE,
                "architecture": {**sizes, "pixel_shuffle": 1, **dict(architecture)},
                "quantizer": quantizer,
                "codebook_size": 64,
                "code_dim": 8,
                "commitment_weight": 0.25,
                "bridge": None,
                "frozen": False,
                **changes,
            }
        )
    )


@pytest.mark.parametrize("quantizer", ["linear", "mlp5", "simvq", "vq-ema", "cvq"])
def test_projected_and_averaged_codebooks_are_exported_as_they_map(quantizer):
    torch.manual_seed(0)
    model = tokenizer(quantizer).eval()
    exported = export_tokenizer(model)
    assert not exported.l2_norm
    published = Published(exported.tensors)
    torch.testing.assert_close(
        published.decode(torch.arange(64).view(1, 8, 8)).clamp(-1, 1).float(),
        model.decode(torch.arange(64).view(1, 8, 8)),
        rtol=0,
        atol=1e-5,
    )


def test_a_frozen_normalised_codebook_is_exported_as_its_unit_codes():
    torch.manual_seed(0)
    model = tokenizer("vq-l2").eval()
    frozen = export_tokenizer(model.freeze())
    assert not frozen.l2_norm
    assert torch.equal(frozen.tensors["quantize.embedding.weight"], model.quantizer.mapped_codebook())
    published = Published(frozen.tensors)
    assert torch.equal(published.encode(images()), model.encode(images()))


@pytest.mark.parametrize(
    ("quantizer", "changes", "message"),
    [
        ("ibq", {}, "quantizer ibq: LlamaGen's layout holds nearest-code lookups in one codebook"),
        ("lfq", {"code_dim": 6}, "quantizer lfq: "),
        ("fsq", {"code_dim": 3, "options": {"levels": (4, 4, 4)}}, "quantizer fsq: "),
        ("residual", {"options": {"depth": 2}}, "quantizer residual: "),
        ("multiscale", {"options": {"scales": (1, 2, 4, 8)}}, "quantizer multiscale: "),
        ("vq", {"architecture": {"pixel_shuffle": 2}}, "pixel_shuffle 2: LlamaGen's layout has none"),
        ("vq", {"architecture": {"attention": False}}, "attention false: "),
        ("vq", {"architecture": {"channels": 24}}, "channels 24: LlamaGen's group norm needs multiples of 32"),
        ("vq", {"architecture": {"multipliers": (2, 3)}}, r"multipliers \(2, 3\): "),
    ],
)
def test_what_the_layout_cannot_hold_is_not_exported(quantizer, changes, message):
    with pytest.raises(UserError, match=message):
        export_tokenizer(tokenizer(quantizer, **changes))


def test_published_names_of_architectures():
    with torch.device("meta"):
        for name, multipliers in (("VQ-16", (1, 1, 2, 2, 4)), ("VQ-8", (1, 2, 2, 4))):
            sizes = {"channels": 128, "multipliers": multipliers, "residual_blocks": 2, "latent_channels": 256}
            assert export_tokenizer(tokenizer("vq-l2", sizes)).model == name
        other = export_tokenizer(tokenizer("vq-l2", {"channels": 16, "multipliers": (2, 4)})).model
    assert other == "ch=32, ch_mult=[1, 2], num_res_blocks=1, z_channels=8"
