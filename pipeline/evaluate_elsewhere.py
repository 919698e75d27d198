"""Stage ``evaluate_elsewhere@row``: a tokenizer's figures on the further evaluation sets, such as COCO."""

from fvq.runtime.files import write_json
from pipeline.evaluate_tokenizer import evaluate
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``metrics/``: a file for each set, under its name."""
    folder = run.output_folder("metrics")
    tokenizer_path = run.input("freeze_codebook", "tokenizer.safetensors", run.name)
    for name, chosen in run.parameters.evaluation_sets.items():
        images = run.input("prepare_evaluation_set", "images.parquet", name)
        evaluation = evaluate(run, tokenizer_path, images, name, chosen.protocol)
        if evaluation is None:
            continue
        write_json(folder / f"{name}.json", evaluation.values | {"seed": run.seed})
        print(f"{run.parameters.rows[run.name].label} on {name}: {evaluation.values['psnr_rgb']:.2f} dB")
        for note in evaluation.notes:
            print(f"{run.name} on {name}: {note}")


if __name__ == "__main__":
    run_stage("evaluate_elsewhere", main, each="rows", parallel=True)
