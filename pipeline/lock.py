"""``python -m pipeline.lock``: whether dvc.lock is true for this code and these parameters, data or none."""

from dvc.exceptions import DvcException
from dvc.repo import Repo

from fvq.runtime.errors import UserError, one_line_errors


def stale_stages() -> list[str]:
    """Stages whose command, parameters or sources differ from what dvc.lock records, upstream first."""
    try:
        with Repo(".") as repo:
            stages = repo.reproduce(dry=True, allow_missing=True, on_error="ignore")
            return [stage.addressing for stage in stages]
    except DvcException as error:
        raise UserError(f"dvc.lock: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    with one_line_errors():
        stale = stale_stages()
        if stale:
            raise UserError(f"dvc.lock: not true for {', '.join(stale)}; run `dvc repro` and commit dvc.lock")
        print("dvc.lock is true for this code and these parameters")
