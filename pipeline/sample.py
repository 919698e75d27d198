"""Stage ``sample@row``: images of every class from a generator; on several GPUs where there are several."""

from functools import partial

from fvq.generate import class_labels
from fvq.generate.parts import sample_many, write_samples
from fvq.runtime.processes import is_first
from fvq.tokenizer.inference import decode_tokens
from pipeline.generator_pair import load_generator_and_tokenizer
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``samples.npz``: ``arr_0`` uint8 (N, H, W, 3) as the ADM evaluator reads, ``arr_1`` labels.

    All processes draw tokens; the first one decodes them, which takes minutes where drawing takes hours.
    """
    settings = run.parameters.sample.of(run.name)
    model, tokenizer = load_generator_and_tokenizer(run)
    labels = class_labels(settings.count, model.config.classes, settings.labels, run.seed)
    tokens = sample_many(
        model, labels, settings, seed=run.seed, part_folder=run.resume_folder, batch_size=settings.batch_size
    )
    if not is_first():
        return
    decode = partial(decode_tokens, tokenizer)
    write_samples(run.output("samples.npz"), tokens, labels, decode, image_size=tokenizer.config.image_size)
    print(f"{run.name}: {len(tokens)} images")


if __name__ == "__main__":
    run_stage("sample", main, each="generators", parallel=True)
