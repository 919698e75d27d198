"""Stage ``sweep_guidance@row``: a generator's samples over the scale of guidance; on several GPUs where there are some.

dvc.yaml cannot look up a listed generator's tokenizer, nor leave out a folder that nothing writes: so every generator
has this stage, and those that ``swept_generators`` leaves out have an empty table.
"""

from fvq.config import Parameters
from fvq.evaluate.image_sets import open_image_set
from fvq.evaluate.networks.extractors import load_extractor
from fvq.experiments.guidance import draw_at_scales, measure_scales
from fvq.generate import class_labels
from fvq.runtime.processes import is_first
from fvq.runtime.training import History, write_history
from pipeline.generator_pair import load_generator_and_tokenizer
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``guidance.csv``."""
    rows: History = _sweep(run) if is_swept(run.parameters, run.name) else []
    if is_first():
        write_history(run.output("guidance.csv"), rows)
        print(f"{run.name}: {len(rows)} scales" if rows else f"{run.name}: swept_generators leaves it out")


def is_swept(parameters: Parameters, name: str) -> bool:
    """Whether there is more to do for a generator than an empty table."""
    return parameters.swept_generators[name]


def _sweep(run: Run) -> History:
    """All processes draw tokens, and share their measuring."""
    sweep, settings = run.parameters.sweep_guidance, run.parameters.sample
    reference = open_image_set(run.input("prepare_data", "validation.parquet"))
    extractor_weights = run.input("train_extractor", "extractor.safetensors")
    model, tokenizer = load_generator_and_tokenizer(run)
    labels = class_labels(sweep.count, model.config.classes, settings.labels, run.seed)
    tokens = draw_at_scales(
        model,
        labels,
        settings,
        sweep.scales,
        seed=run.seed,
        folder=run.resume_folder,
        batch_size=settings.batch_size,
    )
    extractor = load_extractor(extractor_weights, device=run.device)
    return measure_scales(tokens, tokenizer, extractor, reference, run.resume_folder)


if __name__ == "__main__":
    run_stage("sweep_guidance", main, each="generators", parallel=is_swept)
