"""Stage ``prepare_data``: a source of images becomes two Parquet image tables or manifests."""

from fvq.data.prepare import prepare_images
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``train.parquet`` and ``validation.parquet``."""
    train, validation = run.output("train.parquet"), run.output("validation.parquet")
    for line in prepare_images(run.parameters.prepare_data, run.seed, train, validation):
        print(line)


if __name__ == "__main__":
    run_stage("prepare_data", main)
