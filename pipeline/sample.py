"""Stage ``sample@row``: images of every class from a generator."""

import numpy as np

from fvq.generate import LlamaGen, class_labels, sample_many
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.runtime.progress import track
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.inference import decode_tokens
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``samples.npz``: ``arr_0`` uint8 (N, H, W, 3) as the ADM evaluator reads, ``arr_1`` labels."""
    settings = run.parameters.sample
    row = run.parameters.generators[run.name].tokenizer
    model = LlamaGen.load(run.input("train_generator", "generator.safetensors", run.name)).to(run.device)
    tokenizer = Tokenizer.load(run.input("freeze_codebook", "tokenizer.safetensors", row)).to(run.device)
    wanted = tokenizer.config.codebook_size, tokenizer.config.index_shape
    if (model.config.vocabulary_size, model.config.grid) != wanted:
        raise UserError(f"generators.{run.name}: was trained on tokens of another tokenizer than {row}")
    labels = class_labels(settings.count, model.config.classes, settings.labels, run.seed)
    with track("sampling", len(labels)) as advance:
        tokens = sample_many(
            model,
            labels,
            settings,
            seed=run.seed,
            part_folder=run.resume_folder,
            batch_size=settings.batch_size,
            on_progress=advance,
        )
    images = decode_tokens(tokenizer, tokens)
    with write_atomically(run.output("samples.npz")) as temporary:
        np.savez(temporary, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    print(f"{run.name}: {len(images)} images")


if __name__ == "__main__":
    run_stage("sample", main, each="generators")
