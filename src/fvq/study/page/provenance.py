"""What the page says of the runs that its figures come from."""

from collections import Counter
from collections.abc import Sequence

from fvq.study.results import Study
from fvq.study.runs import StageRun


def anchor(run: StageRun) -> str:
    """The id of the line on the page that holds a run's record."""
    return "run-" + run.name.replace("@", "-")


def runs_by_row(study: Study) -> dict[str | None, dict[str, StageRun]]:
    """The runs by row (None for what runs once) and stage."""
    found: dict[str | None, dict[str, StageRun]] = {}
    for run in study.runs:
        found.setdefault(run.row, {})[run.stage] = run
    return found


def commit_in_words(run: StageRun) -> str | None:
    """The commit's first twelve digits, and whether the working tree had other changes."""
    return run.commit and run.commit[:12] + (", with uncommitted changes" if run.dirty else "")


def started_in_words(run: StageRun) -> str | None:
    """When a run started: 2026-01-31 12:00:00 UTC."""
    return run.started_at and run.started_at.replace("T", " ", 1).replace("+00:00", " UTC")


def distinct(entries: Sequence[str | None]) -> list[tuple[str, int]]:
    """How many runs each entry stands for, the most usual first."""
    return Counter(entry or "not recorded" for entry in entries).most_common()


def titled_commands(study: Study) -> list[tuple[str, str]]:
    """What each command makes, in words, and the command."""
    repeats = {(row.name, seed): row.label for row in study.rows for seed in row.repeats}
    titles = {
        "": "Everything",
        **{f"evaluate_tokenizer@{row.name}": row.label for row in study.rows},
        **{f"evaluate_elsewhere@{row.name}": f"{row.label} on {', '.join(row.elsewhere)}" for row in study.rows},
        **{f"evaluate_repeat@{name}-{seed}": f"{label}, seed {seed}" for (name, seed), label in repeats.items()},
        **{f"evaluate_generator@{row.name}": row.label for row in study.generators},
        **{f"sweep_guidance@{row.name}": f"{row.label}: scales of guidance" for row in study.generators},
    }
    return [(titles.get(name, name), command) for name, command in study.commands.items()]
