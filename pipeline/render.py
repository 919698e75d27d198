"""Stage ``render``: tables, plots and the report from what the other stages wrote."""

from pathlib import Path

from fvq.study import render_study
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``reports/``."""
    parameters = run.parameters.model_dump(mode="json")
    _warn_of_leftovers(run)
    written = render_study(Path("results", run.parameters.study), run.folder("render", None), parameters)
    run.outputs.extend(path for path in written if path.is_file())
    print(f"the report is {written[0]}")


def _warn_of_leftovers(run: Run) -> None:
    """DVC hashes the folders whole: another row's files would make dvc.lock untrue for a fresh clone."""
    names = {*run.parameters.rows, *run.parameters.generators}
    for path in sorted(Path("results", run.parameters.study).glob("*/*/")):
        if path.name not in names:
            print(f"{path}: belongs to no row of params.yaml; remove it before committing dvc.lock")


if __name__ == "__main__":
    run_stage("render", main)
