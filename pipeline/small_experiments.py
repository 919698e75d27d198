"""Stage ``small_experiments``: the toy of the paper's Figure 2, and Figure 7."""

from fvq.data.open import open_images
from fvq.experiments.codebook_sizes import train_on_sizes
from fvq.experiments.files import write_sizes, write_trajectories
from fvq.experiments.straight_through import run_trajectory
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``trajectories.parquet``, ``trajectories.json`` and ``sizes.csv``."""
    settings = run.parameters.small_experiments
    table = open_images(run.input("prepare_data", "train.parquet"))
    trajectories = {
        toy.label: run_trajectory(
            toy.quantizer,
            codebook_size=settings.toy_codebook_size,
            steps=settings.toy_steps,
            learning_rate=settings.toy_learning_rate,
            seed=run.seed,
            **toy.options,
        )
        for toy in settings.toy_runs
    }
    histories = train_on_sizes(
        run.parameters.tokenizer_config(settings.sizes_row),
        table,
        run.parameters.train_tokenizer,
        run.parameters.schedule(settings.sizes_row),
        sizes=settings.sizes,
        steps=settings.sizes_steps,
        seed=run.seed,
        checkpoint_folder=run.resume_folder,
        checkpoint_every=run.checkpoint_every,
        device=run.device,
    )
    folder = run.output("trajectories.parquet").parent
    write_trajectories(folder, trajectories)
    write_sizes(folder, histories)
    run.output("trajectories.json")
    run.output("sizes.csv")
    last = {size: history[-1]["loss"] for size, history in histories.items()}
    print("quantization loss: " + ", ".join(f"{loss:.2g} with {size} codes" for size, loss in last.items()))


if __name__ == "__main__":
    run_stage("small_experiments", main)
