"""Stage ``render``: tables, plots and the report from what the other stages wrote."""

import shlex
from pathlib import Path

import yaml

from fvq.quantize.cost import projector_costs
from fvq.study import render_study
from pipeline.compose import overrides_for
from pipeline.run import Run, run_stage

# Those of the paper's Table 10.
_SIZES, _CODE_DIM = (16384, 262144), 256


def main(run: Run) -> None:
    """Write ``reports/``."""
    parameters = run.parameters.model_dump(mode="json")
    _warn_of_leftovers(run)
    written = render_study(
        Path("results", run.parameters.study),
        run.folder("render", None),
        parameters,
        commands=_commands(run),
        projector_costs=projector_costs(_SIZES, _CODE_DIM),
    )
    run.outputs.extend(path for path in written if path.is_file())
    print(f"the report is {written[0]}")


def _commands(run: Run) -> dict[str, str]:
    """What evaluates each row and generator, by its stage, and what makes everything, under ""."""
    overrides = overrides_for(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")))
    if overrides is None:  # params.yaml holds more than overrides of conf/ can say
        command = "dvc repro"
    else:
        command = shlex.join(["dvc", "exp", "run", *(part for each in overrides for part in ("-S", each))])
    parameters = run.parameters
    named = {
        "evaluate_tokenizer": parameters.rows,
        "evaluate_elsewhere": parameters.evaluated_elsewhere,
        "evaluate_repeat": parameters.repetitions,
        "evaluate_generator": parameters.generators,
        "sweep_guidance": [name for name, swept in parameters.swept_generators.items() if swept],
    }
    stages = [f"{stage}@{name}" for stage, names in named.items() for name in names]
    return {"": command, **{stage: f"{command} {stage}" for stage in stages}}


def _warn_of_leftovers(run: Run) -> None:
    """DVC hashes the folders whole: another row's files would make dvc.lock untrue for a fresh clone."""
    groups = (
        run.parameters.rows,
        run.parameters.generators,
        run.parameters.repetitions,
        run.parameters.evaluation_sets,
    )
    names = {name for group in groups for name in group}
    for path in sorted(Path("results", run.parameters.study).glob("*/*/")):
        if path.name not in names:
            print(f"{path}: belongs to no row of params.yaml; remove it before committing dvc.lock")


if __name__ == "__main__":
    run_stage("render", main)
