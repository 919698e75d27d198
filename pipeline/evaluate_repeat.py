"""Stage ``evaluate_repeat@row-seed``: the figures of a row that was trained with another seed."""

from fvq.runtime.files import write_json
from pipeline.evaluate_tokenizer import evaluate
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``metrics.json``."""
    row, seed = run.parameters.repetitions[run.name]
    validation = run.input("prepare_data", "validation.parquet")
    tokenizer_path = run.input("repeat_tokenizer", "tokenizer.safetensors", run.name)
    protocol = run.parameters.evaluate_tokenizer.protocol
    evaluation = evaluate(run, tokenizer_path, validation, f"{run.parameters.dataset} validation", protocol)
    if evaluation is None:
        return
    write_json(run.output("metrics.json"), evaluation.values | {"seed": seed})
    label = run.parameters.rows[row].label
    print(f"{label}, seed {seed}: usage {evaluation.values['usage']:.2%}, {evaluation.values['psnr_rgb']:.2f} dB")


if __name__ == "__main__":
    run_stage("evaluate_repeat", main, each="repetitions", parallel=True)
