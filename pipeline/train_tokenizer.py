"""Stage ``train_tokenizer@row``: one tokenizer, its bridge included; on several GPUs where there are several."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fvq.data.open import open_images
from fvq.runtime.files import copy_folder
from fvq.runtime.processes import is_first
from fvq.runtime.training import write_history
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.stability import FIGURES
from fvq.tokenizer.training import train_tokenizer
from pipeline.live import live_log
from pipeline.run import Run, run_stage

# What history.csv has beside the charts.
_NOT_DRAWN = {"epoch", "usage_tokens", "sliding_usage", "sliding_usage_tokens", *FIGURES}


def train(
    run: Run, name: str, seed: int, on_row: Callable[[Mapping[str, float]], None] | None = None
) -> tuple[Tokenizer, list[dict[str, float]]]:
    """The tokenizer of the row ``name`` and its history; pictures of it go to the run's resume folder."""
    row = run.parameters.rows[name]
    images = open_images(run.input("prepare_data", "train.parquet"))
    return train_tokenizer(
        run.parameters.tokenizer_config(name),
        images,
        run.parameters.train_tokenizer,
        run.parameters.schedule(name),
        epochs=row.epochs,
        steps=row.steps,
        seed=seed,
        checkpoint_folder=run.resume_folder,
        checkpoint_every=run.checkpoint_every,
        device=run.device,
        on_row=on_row,
        grid_folder=run.resume_folder / "grids",
    )


def main(run: Run) -> None:
    """Write ``tokenizer.safetensors``, ``history.csv``, and for those who watch ``live/`` and ``grids/``."""
    row = run.parameters.rows[run.name]
    tokenizer, history = train(run, run.name, run.seed, _draw(run.output_folder("live")) if is_first() else None)
    if not is_first():
        return
    tokenizer.save(run.output("tokenizer.safetensors"))
    write_history(run.output("history.csv"), history)
    copy_folder(run.resume_folder / "grids", run.output_folder("grids"))
    last = history[-1]
    print(f"{row.label}: error {last['reconstruction']:.5f}, usage in training {last['usage']:.1%}")


def _draw(folder: Path) -> Callable[[Mapping[str, float]], None]:
    log = live_log(folder)
    return lambda row: log({name: value for name, value in row.items() if name not in _NOT_DRAWN})


if __name__ == "__main__":
    run_stage("train_tokenizer", main, each="rows", parallel=True)
