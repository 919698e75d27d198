"""Stage ``prepare_evaluation_set@set``: further images that tokenizers are evaluated on, as a manifest."""

from fvq.data.prepare import index_images
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``images.parquet``."""
    parameter = f"evaluation_sets.{run.name}.images"
    print(index_images(run.parameters.evaluation_sets[run.name], run.output("images.parquet"), parameter=parameter))


if __name__ == "__main__":
    run_stage("prepare_evaluation_set", main, each="evaluation_sets")
