"""``fvq import-checkpoint`` and ``fvq export-checkpoint``: what they say, and bad files as one line."""

import hashlib
import json
import os
import sys
import types

import pytest
import torch
from published import Published, autoencoder, with_bridge
from safetensors.torch import save_file

from fvq.tokenizer import Tokenizer

STATE = autoencoder()
VQGAN = autoencoder(taming=True)
BRIDGED = with_bridge(autoencoder(codes=256), side=4, width=16, labels=1001)


@pytest.fixture
def refused(fvq, tmp_path):
    """An import that must fail: its one line; what the output held stays."""

    def run(*arguments, status=1):
        kept = tmp_path / "kept.safetensors"
        kept.write_bytes(b"before")
        before = sorted(tmp_path.iterdir())
        found, out, err = fvq("import-checkpoint", *arguments, "--out", kept, "--force")
        assert found == status and out == "", (found, out, err)
        assert err.startswith("fvq: error: ") and err.count("\n") == 1 and err.endswith("\n")
        assert kept.read_bytes() == b"before" and sorted(tmp_path.iterdir()) == before
        return err

    return run


def test_an_import_says_what_it_is(fvq, tmp_path):
    torch.save({"model": BRIDGED, "steps": 5}, "last.pt")
    status, out, err = fvq("import-checkpoint", "last.pt", "--out", "here/tokenizer.safetensors", "--image-size", 16)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "layout fvq-dit: FVQ's training form with the bridge of qbridge.py",
        "codebook 256 x 8, quantizer fvq",
        "ratio 2: 8x8 tokens of 16x16 pixels; 32 channels, multipliers 1, 2, 1 residual blocks",
        "bridge dit: 2 blocks of width 16, 4 heads, 16 codes a token",
        f"{sum(map(torch.numel, BRIDGED.values())) - 65536 - 16 * 16 - 1000 * 16:,} parameters",
        "left out: steps, quantize.codebook_used, quantize.qbridge.pos_embed (fixed), 1,000 class labels of the bridge",
        "wrote here/tokenizer.safetensors (the tokenizer)",
        "wrote here/tokenizer.safetensors.provenance.json (how it came about)",
    ]
    config = Tokenizer.load("here/tokenizer.safetensors").config
    assert (config.quantizer, config.image_size, config.frozen) == ("fvq", 16, False)
    record = json.loads((tmp_path / "here/tokenizer.safetensors.provenance.json").read_text(encoding="utf-8"))
    assert record["stage"] == "fvq import-checkpoint" and record["parameters"]["layout"] == "fvq-dit"
    assert record["inputs"] == {"last.pt": hashlib.sha256((tmp_path / "last.pt").read_bytes()).hexdigest()}


def test_there_and_back_by_the_commands(fvq):
    torch.save({"model": STATE}, "vq.pt")
    assert fvq("import-checkpoint", "vq.pt", "--layout", "llamagen", "-o", "vq.safetensors")[0] == 0
    status, out, _ = fvq("export-checkpoint", "vq.safetensors", "-o", "back.pt")
    assert status == 0
    assert out.splitlines() == [
        "the published code reads it as ch=32, ch_mult=[1, 2], num_res_blocks=1, z_channels=16 with codebook_size=64, "
        "codebook_embed_dim=8, codebook_l2_norm=True",
        "wrote back.pt (LlamaGen's layout)",
        "wrote back.pt.provenance.json (how it came about)",
    ]
    back = torch.load("back.pt", weights_only=True)
    assert back.keys() == {"model"} and back["model"].keys() == STATE.keys()
    assert all(torch.equal(back["model"][name], tensor) for name, tensor in STATE.items())


def test_the_export_of_a_bridge_is_its_frozen_form(fvq):
    torch.save({"model": BRIDGED}, "last.pt")
    fvq("import-checkpoint", "last.pt", "-o", "bridge.safetensors")
    status, out, _ = fvq("export-checkpoint", "bridge.safetensors", "-o", "frozen.pt")
    assert status == 0 and "codebook_l2_norm=False" in out
    codes = torch.load("frozen.pt", weights_only=True)["model"]["quantize.embedding.weight"]
    torch.testing.assert_close(codes.double(), Published(BRIDGED).codebook(), rtol=1e-4, atol=1e-5)


def test_safetensors_of_a_published_layout_are_read(fvq):
    save_file(STATE, "vq.safetensors")
    status, out, _ = fvq("import-checkpoint", "vq.safetensors", "--layout", "fvq", "-o", "ours.safetensors")
    assert status == 0 and out.startswith("layout fvq: FVQ's released form, without bridge\n")


def test_lightning_keys_its_states_by_a_class_that_is_not_loaded(fvq, monkeypatch):
    """As in the VQGAN that CompVis published; the class is neither imported nor run here."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    with monkeypatch.context() as lightning:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            lightning.setitem(sys.modules, name, module)
        module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
        callbacks = {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.4), "best_model_path": "epoch=12"}}
        torch.save({"epoch": 12, "callbacks": callbacks, "state_dict": VQGAN}, "last.ckpt")
    status, out, err = fvq("import-checkpoint", "last.ckpt", "-o", "vqgan.safetensors")
    assert (status, err) == (0, "")
    assert "left out: epoch, callbacks\n" in out


class RunsACommand:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Settings:
    """Any class but plain data."""


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        ({"model": STATE, "args": RunsACommand()}, f"{os.system.__module__}.system"),
        ({"model": STATE, "args": Settings()}, f"{__name__}.Settings"),
        ({"model": torch.nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_pickle_that_wants_more_than_plain_data_is_refused(refused, content, asked, tmp_path):
    torch.save(content, "evil.pt")
    assert f"evil.pt: refused: it asks for {asked}, and only plain data is read" in refused(
        "evil.pt", "--layout", "fvq"
    )
    assert not (tmp_path / "executed").exists()


# Shares of the file, or bytes: with so many left torch seeks before the file's beginning.
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999, 5000, 20000])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files(refused, keep, zipped, tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep < 1 else int(keep)])
    assert f"{path}: damaged, or not a checkpoint of torch" in refused(path, "--layout", "fvq")


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 a photograph", b"hello\n", bytes(600)])
def test_files_that_are_no_checkpoint(refused, content, tmp_path):
    (tmp_path / "photo.pt").write_bytes(content)
    assert "photo.pt: damaged, or not a checkpoint of torch" in refused("photo.pt")
    (tmp_path / "photo.safetensors").write_bytes(content)
    assert "photo.safetensors: not a readable safetensors file" in refused("photo.safetensors")
    assert "nowhere.pt: no such file" in refused("nowhere.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds no checkpoint but a Tensor"),
        ({}, "holds no checkpoint but a dict"),
        ({"epoch": 1, "b": 2, "c": 3, "d": 4}, "holds no model or module or state_dict, but epoch, b, c and 1 more"),
        ({"model": {"a": 1}}, "model is not a state dict (names and tensors)"),
        ({"model": {"a": torch.zeros(2, device="meta")}}, "a is no dense tensor with values"),
        ({"a": torch.eye(2).to_sparse()}, "a is no dense tensor with values"),
        ({"fc.weight": torch.zeros(2)}, "of no published layout; its tensors are fc.weight"),
    ],
)
def test_content_that_is_no_tokenizer(refused, content, message):
    torch.save(content, "other.pt")
    assert f"other.pt: {message}\n" in refused("other.pt")


def test_averaged_weights_that_are_not_there(refused):
    torch.save({"model": STATE, "steps": 1}, "vq.pt")
    assert "vq.pt: holds no ema, but model, steps" in refused("vq.pt", "--layout", "fvq", "--ema")


def test_layouts_of_the_same_names_must_be_chosen(refused):
    torch.save({"model": STATE}, "vq.pt")
    line = refused("vq.pt")
    assert "vq.pt: its names fit two layouts; choose --layout llamagen (LlamaGen's tokenizer, with a normalised" in line
    assert "or fvq (FVQ's released form, without bridge)" in line
    assert "vq.pt: not of the layout taming, but of llamagen or fvq" in refused("vq.pt", "--layout", "taming")
    torch.save({"model": BRIDGED}, "bridge.pt")
    assert "not of the layout fvq, but of fvq-dit" in refused("bridge.pt", "--layout", "fvq")
    assert "'vqvae' is not one of 'llamagen'" in refused("vq.pt", "--layout", "vqvae", status=2)


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


POSITIONS = "quantize.qbridge.pos_embed"
DOWN = "encoder.down"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            without(STATE, "quant_conv.bias", "decoder.mid.1.q.weight"),
            "of another architecture than the layout fvq; tensors: 2 missing (decoder.mid.1.q.weight, quant_conv.bias)",
        ),
        (
            {**STATE, **{f"extra.{index}": torch.zeros(1) for index in range(5)}},
            "tensors: 5 unexpected (extra.0, extra.1, extra.2 and 2 more)",
        ),
        (
            {**without(STATE, "quant_conv.bias"), "quant.bias": torch.zeros(8)},
            "tensors: 1 unexpected (quant.bias); 1 missing (quant_conv.bias)",
        ),
        (without(STATE, "encoder.conv_in.weight"), "not of the layout fvq: encoder.conv_in.weight is missing"),
        (
            {**STATE, "quant_conv.weight": torch.zeros(4, 16, 1, 1)},
            "quant_conv.weight is (4, 16, 1, 1) and must be (8, 16, 1, 1)",
        ),
        (
            {**STATE, "encoder.mid.1.k.weight": torch.zeros(64, 64, 1)},
            "encoder.mid.1.k.weight is (64, 64, 1) and must be (64, 64, 1, 1)",
        ),
        (
            {**STATE, "quantize.embedding.weight": torch.zeros(64)},
            "quantize.embedding.weight is (64,) and must have 2 dimensions",
        ),
        ({**STATE, "quant_conv.bias": torch.zeros(8).half()}, "quant_conv.bias is float16; the published tensors are"),
        (
            {**STATE, "encoder.conv_in.weight": torch.zeros(48, 3, 3, 3)},
            "levels of 32, 64 channels; they must be multiples of the first convolution's 48, and this one of 32",
        ),
        ({**STATE, "quantize.embedding.weight": torch.zeros(1, 8)}, "codebook_size: should be greater than or equal"),
        ({**BRIDGED, POSITIONS: BRIDGED[POSITIONS] + 1e-4}, f"{POSITIONS} is not the fixed sin-cos table (1, 16, 16)"),
        ({**BRIDGED, POSITIONS: BRIDGED[POSITIONS][:, :9]}, f"{POSITIONS} is not the fixed sin-cos table (1, 16, 16)"),
        (
            {**BRIDGED, "quantize.qbridge.x_embedder.proj.weight": torch.zeros(16, 8, 0, 0)},
            "patch: should be greater than or equal to 1, not 0",
        ),
        (
            without(BRIDGED, "quantize.qbridge.y_embedder.embedding_table.weight"),
            "1 missing (quantize.qbridge.y_embedder.embedding_table.weight)",
        ),
        (
            {**BRIDGED, "quantize.embedding.weight": torch.zeros(200, 8)},
            "codebook_size 200 is not divisible by the bridge's patch of 16 codes as a square grid",
        ),
        (
            {name.replace(f"{DOWN}.1.attn", f"{DOWN}.0.attn"): tensor for name, tensor in VQGAN.items()},
            "the encoder has attention in the levels 1 of 2; it must have it in the last alone",
        ),
        (
            {name: tensor for name, tensor in VQGAN.items() if f"{DOWN}.1.attn" not in name},
            "the encoder has attention in no level of 2; it must have it in the last alone",
        ),
        ({**VQGAN, "quantize.proj.weight": torch.zeros(1)}, "the layout taming; tensors: 1 unexpected (quantize.proj"),
    ],
)
def test_another_architecture(refused, state, message):
    torch.save({"model": state}, "other.pt")
    same_names = state is not BRIDGED and any("conv_blocks" in name for name in state) and POSITIONS not in state
    assert message in refused("other.pt", *(["--layout", "fvq"] if same_names else []))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--codebook-size", 65536], "vq.pt: has a codebook of 64 codes, not 65,536 (--codebook-size)"),
        (["--image-size", 33], "image_size 33 is not divisible by the ratio 2"),
        (["--sha256", "0" * 64], "not " + "0" * 64 + " (--sha256)"),
    ],
)
def test_options_that_do_not_fit_the_file(refused, options, message):
    torch.save({"model": STATE}, "vq.pt")
    assert message in refused("vq.pt", "--layout", "fvq", *options)


def test_a_grid_is_a_generators_option(refused):
    torch.save({"model": STATE}, "vq.pt")
    assert "vq.pt: holds a tokenizer, which knows no --grid" in refused("vq.pt", "--layout", "fvq", "--grid", 16)


def test_heads_that_do_not_fit_the_bridge(refused):
    torch.save({"model": BRIDGED}, "bridge.pt")
    assert "width 16 is not divisible by 3 heads" in refused("bridge.pt", "--heads", 3)


def test_the_hash_is_checked_before_the_file_is_read(fvq, refused, tmp_path):
    (tmp_path / "damaged.pt").write_bytes(b"nothing")
    assert "damaged.pt: SHA-256 is " in refused("damaged.pt", "--sha256", "ab" * 32)
    torch.save({"model": STATE}, "vq.pt")
    right = hashlib.sha256((tmp_path / "vq.pt").read_bytes()).hexdigest().upper()
    arguments = ("--layout", "fvq", "-o", "out.safetensors", "--sha256", right, "--codebook-size", 64)
    assert fvq("import-checkpoint", "vq.pt", *arguments)[0] == 0


def test_outputs_are_not_overwritten(fvq, tmp_path):
    torch.save({"model": STATE}, "vq.pt")
    (tmp_path / "there.safetensors").write_bytes(b"before")
    status, _, err = fvq("import-checkpoint", "vq.pt", "--layout", "fvq", "-o", "there.safetensors")
    assert status == 1 and "there.safetensors: exists already; --force overwrites it" in err
    assert fvq("import-checkpoint", "vq.pt", "--layout", "fvq", "-o", "vq.safetensors")[0] == 0
    (tmp_path / "there.pt").write_bytes(b"before")
    status, _, err = fvq("export-checkpoint", "vq.safetensors", "-o", "there.pt")
    assert status == 1 and "there.pt: exists already; --force overwrites it" in err
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "there.pt").read_bytes() == b"before"
    assert "must end in .pt" in fvq("export-checkpoint", "vq.safetensors", "-o", "there.ckpt")[2]
    assert "must end in .safetensors" in fvq("import-checkpoint", "vq.pt", "-o", "there.pt")[2]


def test_an_export_names_the_file_that_the_layout_cannot_hold(fvq, tmp_path):
    torch.save({"model": STATE}, "vq.pt")
    fvq("import-checkpoint", "vq.pt", "--layout", "fvq", "-o", "vq.safetensors")
    config = Tokenizer.load("vq.safetensors").config
    Tokenizer(config.model_copy(update={"quantizer": "ibq"})).save("ibq.safetensors")
    status, out, err = fvq("export-checkpoint", "ibq.safetensors", "-o", "ibq.pt")
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert "ibq.safetensors: quantizer ibq: LlamaGen's layout holds nearest-code lookups in one codebook" in err
    assert not (tmp_path / "ibq.pt").exists()


@pytest.mark.parametrize("command", ["import-checkpoint", "export-checkpoint"])
def test_the_commands_have_help_with_an_example(fvq, command):
    status, out, _ = fvq(command, "--help")
    assert status == 0 and f"fvq {command}" in out.split("Example:")[1]
