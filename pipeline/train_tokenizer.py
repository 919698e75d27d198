"""Stage ``train_tokenizer@row``: one tokenizer, its bridge included."""

from fvq.data.image_table import ImageTable
from fvq.runtime.training import write_history
from fvq.tokenizer.training import train_tokenizer
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``tokenizer.safetensors`` and ``history.csv``."""
    row = run.parameters.rows[run.name]
    table = ImageTable.open(run.input("prepare_data", "train.parquet"))
    tokenizer, history = train_tokenizer(
        run.parameters.tokenizer_config(run.name),
        table,
        run.parameters.train_tokenizer,
        run.parameters.schedule(run.name),
        epochs=row.epochs,
        steps=row.steps,
        seed=run.seed,
        checkpoint_folder=run.resume_folder,
        checkpoint_every=run.checkpoint_every,
        device=run.device,
    )
    tokenizer.save(run.output("tokenizer.safetensors"))
    write_history(run.output("history.csv"), history)
    last = history[-1]
    print(f"{row.label}: error {last['reconstruction']:.5f}, usage in training {last['usage']:.1%}")


if __name__ == "__main__":
    run_stage("train_tokenizer", main)
