"""Stage ``prepare_data``: a source of images becomes two Parquet image tables."""

from fvq.data.image_table import ImageTable
from fvq.data.prepare import prepare_images
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``train.parquet`` and ``validation.parquet``."""
    train, validation = run.output("train.parquet"), run.output("validation.parquet")
    prepare_images(run.parameters.prepare_data, run.seed, train, validation)
    counts = [len(ImageTable.open(path)) for path in (train, validation)]
    print(f"{train.parent}: {counts[0]} training and {counts[1]} validation images")


if __name__ == "__main__":
    run_stage("prepare_data", main)
