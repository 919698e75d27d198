"""Stage ``list_further``: what is evaluated elsewhere and repeated, so that the folders exist where nothing is."""

from fvq.runtime.files import write_json
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write a list of names into the folder of each stage that a study may do without."""
    parameters = run.parameters
    repetitions = list(parameters.repetitions)
    listed = {
        ("prepare_evaluation_set", "sets.json"): list(parameters.evaluation_sets),
        ("evaluate_elsewhere", "rows.json"): list(parameters.evaluated_elsewhere),
        ("repeat_tokenizer", "rows.json"): repetitions,
        ("evaluate_repeat", "rows.json"): repetitions,
    }
    for (stage, file), names in listed.items():
        path = run.folder(stage, None) / file
        write_json(path, names)
        run.outputs.append(path)


if __name__ == "__main__":
    run_stage("list_further", main)
