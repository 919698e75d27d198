"""Stage ``repeat_tokenizer@row-seed``: a row trained and frozen once more, with another seed."""

from fvq.data.open import open_images
from fvq.runtime.processes import is_first
from fvq.runtime.training import write_history
from fvq.tokenizer.freezing import freeze_tokenizer
from pipeline.run import Run, run_stage
from pipeline.train_tokenizer import train


def main(run: Run) -> None:
    """Write ``tokenizer.safetensors``, frozen, and ``history.csv``."""
    row, seed = run.parameters.repetitions[run.name]
    validation = run.input("prepare_data", "validation.parquet")
    tokenizer, history = train(run, row, seed)
    if not is_first():
        return
    frozen, _ = freeze_tokenizer(tokenizer, open_images(validation))
    frozen.save(run.output("tokenizer.safetensors"))
    write_history(run.output("history.csv"), history)
    print(f"{run.parameters.rows[row].label}, seed {seed}: usage in training {history[-1]['usage']:.1%}")


if __name__ == "__main__":
    run_stage("repeat_tokenizer", main, each="repetitions", parallel=True)
