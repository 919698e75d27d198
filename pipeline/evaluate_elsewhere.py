"""Stage ``evaluate_elsewhere@row``: a tokenizer's figures on the further evaluation sets, such as COCO."""

from fvq.runtime.files import write_json
from pipeline.evaluate_tokenizer import evaluate
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``metrics.json``: each figure's name begins with its set's."""
    figures: dict[str, float | int | str] = {}
    for name in run.parameters.evaluation_sets:
        on_set = evaluate(run, run.input("prepare_evaluation_set", "images.parquet", name), name).figures
        figures |= {f"{name}_{figure}": value for figure, value in on_set.items()}
        print(f"{run.parameters.rows[run.name].label} on {name}: {on_set['psnr_rgb']:.2f} dB")
    write_json(run.output("metrics.json"), figures)


if __name__ == "__main__":
    run_stage("evaluate_elsewhere", main, each="rows")
