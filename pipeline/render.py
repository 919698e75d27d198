"""Stage ``render``: tables, plots and the report from what the other stages wrote."""

from pathlib import Path

from fvq.study import render_study
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``reports/``."""
    parameters = run.parameters.model_dump(mode="json")
    written = render_study(Path("results", run.parameters.study), run.folder("render", None), parameters)
    run.outputs.extend(path for path in written if path.is_file())
    print(f"the report is {written[0]}")


if __name__ == "__main__":
    run_stage("render", main)
