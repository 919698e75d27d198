"""A tokenizer's training that is killed, asked to stop or damaged ends with the bits of an undisturbed one."""

import json

from projects import run_script

# Everything that a resume state holds: both optimisers, the moving average, usage counts, crops, parts of a batch.
TRAIN = """
    import hashlib, io, json, os, signal, sys
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image

    from fvq.data.manifest import ImageManifest, ManifestInfo, ManifestRecord, write_manifest
    from fvq.runtime import checkpoint
    from fvq.runtime.errors import one_line_errors
    from fvq.runtime.processes import is_first, process_group
    from fvq.runtime.schedule import Schedule
    from fvq.tokenizer import TokenizerConfig
    from fvq.tokenizer.settings import TokenizerTraining
    from fvq.tokenizer.step import TokenizerStep
    from fvq.tokenizer.training import train_tokenizer

    STEPS = 14

    def write_images(folder):
        folder.mkdir(parents=True)
        random, records = np.random.default_rng(0), []
        for number in range(24):
            width, height = int(random.integers(40, 60)), int(random.integers(40, 60))
            coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            path = folder / f"{number}.png"
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
            data = path.read_bytes()
            records.append(
                ManifestRecord(
                    str(path), 0, len(data), 0, path.name, width, height, "RGB", 1, hashlib.sha256(data).digest()
                )
            )
        info = ManifestInfo(
            dataset="coarse", classes=["all"], image_size=32, center_crop="adm", turn_by_exif=False, unreadable=[]
        )
        write_manifest(folder / "manifest.parquet", records, info)

    def train(images, folder, out, quantizer):
        torch.set_num_threads(1)
        bridge = dict(patch=4, width=8, depth=1, heads=2, layout="grid", block="vit")
        config = TokenizerConfig(
            image_size=32, quantizer=quantizer, codebook_size=64, code_dim=8, commitment_weight=0.25, frozen=False,
            bridge=bridge if quantizer == "fvq" else None,
            architecture=dict(
                channels=8, multipliers=(1, 1), residual_blocks=1, attention=True, latent_channels=8, pixel_shuffle=4
            ),
        )
        settings = TokenizerTraining(
            batch_size=8, accumulate=2, precision="float32", learning_rate=2e-3, reference_batch_size=8,
            betas=(0.9, 0.95), gradient_clip=1.0, ema_decay=0.8, reconstruction_weight=1.0, perceptual_weight=0.0,
            perceptual_weights=None, adversarial_weight=0.2, adversarial_start=3, crop=(0.7, 1.0), flip=True,
            log_every=5, grid_every=4, probe_images=4,
        )
        schedule = Schedule(warmup=0.2, warmup_from=0.01, constant=0.2, final=0.01, shape="cosine")
        with process_group(), one_line_errors():
            tokenizer, history = train_tokenizer(
                config, ImageManifest.open(images), settings, schedule, steps=STEPS, seed=5,
                checkpoint_folder=folder, checkpoint_every=4, grid_folder=folder / "grids",
            )
            if is_first():
                tokenizer.save(out.with_suffix(".safetensors"))
                digest = hashlib.sha256(out.with_suffix(".safetensors").read_bytes()).hexdigest()
                grids = sorted(path.name for path in (folder / "grids").iterdir())
                out.write_text(json.dumps({"weights": digest, "history": history, "grids": grids}))

    def at_step(number, action):
        call = TokenizerStep.__call__
        def wrapped(self, index, *arguments):
            if index == number:
                action()
            return call(self, index, *arguments)
        TokenizerStep.__call__ = wrapped

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def half_a_checkpoint(state, path):
        write(state, path)
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        kill()

    write = checkpoint.write_state
    work = Path(sys.argv[1])
"""

KILLS = """
    def start(name, quantizer, disturb=None):
        child = os.fork()
        if child == 0:
            if disturb:
                disturb()
            train(work / "images" / "manifest.parquet", work / name, work / f"{name}.json", quantizer)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def inside_a_write():
        count = [0]
        def second(state, path):
            count[0] += 1
            (half_a_checkpoint if count[0] == 2 else write)(state, path)
        checkpoint.write_state = second

    def before_the_hash():
        real = checkpoint.write_atomically
        def stop(path):
            if path.name == "step-00000008.sha256":
                kill()
            return real(path)
        checkpoint.write_atomically = stop

    write_images(work / "images")
    for quantizer in ("fvq", "cvq"):
        assert start(f"{quantizer}-whole", quantizer) == 0
        name = f"{quantizer}-killed"
        kills = [lambda: at_step(2, kill), inside_a_write, before_the_hash, lambda: at_step(13, kill)]
        for disturb in kills:
            assert start(name, quantizer, disturb) == -signal.SIGKILL
        newest = work / name / "step-00000012.pt"
        if quantizer == "fvq":
            newest.write_bytes(newest.read_bytes()[:-100])
        assert start(name, quantizer) == 0
        name = f"{quantizer}-stopped"
        for number, step in ((signal.SIGTERM, 5), (signal.SIGUSR1, 9)):
            status = start(name, quantizer, lambda: at_step(step, lambda: os.kill(os.getpid(), number)))
            assert status == 75, status
        assert start(name, quantizer) == 0
"""


def test_killed_stopped_or_damaged_it_ends_with_the_same_bits(tmp_path):
    told = run_script(TRAIN, KILLS, tmp_path)
    for quantizer in ("fvq", "cvq"):
        whole, killed, stopped = (
            json.loads((tmp_path / f"{quantizer}-{name}.json").read_text()) for name in ("whole", "killed", "stopped")
        )
        assert killed == whole
        assert stopped == whole
        assert whole["grids"] == ["step-00000004.png", "step-00000008.png", "step-00000012.png"]
    lines = told.splitlines()
    asked = [line for line in lines if "received" in line]
    assert asked[:2] == [
        "fvq: training the tokenizer: SIGTERM received; saved after step 6 of 14, the same command goes on from there",
        "fvq: training the tokenizer: SIGUSR1 received; saved after step 10 of 14, the same command goes on from there",
    ]
    # The state whose hash was never written, and the one that lost its end.
    assert sum("step-00000008.pt is damaged; going back to the state before it" in line for line in lines) == 2
    assert sum("step-00000012.pt is damaged; going back to the state before it" in line for line in lines) == 1
