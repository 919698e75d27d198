"""From a finished study's results to its reports."""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvq.runtime.files import write_atomically
from fvq.study.claims.verdicts import judge, verdict_records
from fvq.study.drawings.figures import write_figures
from fvq.study.page.report import render_report
from fvq.study.results import Study, read_study
from fvq.study.runs import StageRun
from fvq.study.tables.build import build_tables
from fvq.study.tables.formats import to_csv, to_latex, to_markdown
from fvq.study.tables.guidance import guidance_csv, guidance_table


def render_study(
    results: Path,
    reports: Path,
    parameters: Mapping[str, Any],
    commands: Mapping[str, str] | None = None,
    projector_costs: Mapping[tuple[str, int], int] | None = None,
) -> list[Path]:
    """Render the study of ``parameters`` from ``results`` (`results/<study>/`) into ``reports``.

    ``commands`` and ``projector_costs`` are shown as in ``Study``.

    Writes `index.html`, `tables/` (Markdown, LaTeX, CSV), `figures/` (SVG, PNG), `verdicts.json` (a list of the claims
    with the fields of ``Claim``), `usage.csv` (row, step, usage) and `metrics.json` (flat, ``<row>.<figure>``); returns
    the paths of all files. The same results give the same bytes; Markdown links to where they lie beside ``reports``.

    Raises:
        UserError: a row's file is missing, damaged, or of another protocol than the other rows'; nothing is written.
    """
    results, reports = Path(results), Path(reports)
    study = read_study(results, parameters, commands, projector_costs)
    tables, guidance, claims = build_tables(study), guidance_table(study), judge(study)
    verdicts, usage, metrics = (reports / name for name in ("verdicts.json", "usage.csv", "metrics.json"))

    def record(run: StageRun) -> str:
        return Path(os.path.relpath(run.path, reports / "tables")).as_posix()

    # Everything is made before the first rename, so that a page and its tables and figures belong together.
    with (
        write_atomically(reports / "index.html") as page,
        write_atomically(verdicts) as verdicts_file,
        write_atomically(usage) as usage_file,
        write_atomically(metrics) as metrics_file,
        write_atomically(reports / "figures") as figures_folder,
        write_atomically(reports / "tables") as tables_folder,
    ):
        tables_folder.mkdir()
        for table in [*tables, *([guidance] if guidance else [])]:
            values = guidance_csv(study) if table is guidance else to_csv(table)
            texts = {"md": to_markdown(table, record), "tex": to_latex(table), "csv": values}
            for kind, text in texts.items():
                (tables_folder / f"{table.name}.{kind}").write_text(text, encoding="utf-8")
        drawings = write_figures(study, figures_folder)
        written = [
            *(reports / "tables" / path.name for path in sorted(tables_folder.iterdir())),
            *(reports / "figures" / path.name for path in sorted(figures_folder.iterdir())),
            verdicts,
            usage,
            metrics,
        ]
        links = [path.relative_to(reports).as_posix() for path in written]
        html = render_report(study, drawings, links, claims=claims, tables=tables, guidance=guidance)
        page.write_text(html, encoding="utf-8")
        records = json.dumps(verdict_records(claims), indent=2, ensure_ascii=False)
        verdicts_file.write_text(records + "\n", encoding="utf-8")
        usage_file.write_text(_usage_csv(study), encoding="utf-8")
        metrics_file.write_text(json.dumps(headline_figures(study), indent=2) + "\n", encoding="utf-8")
    return [reports / "index.html", *written]


def headline_figures(study: Study) -> dict[str, float]:
    """The figures by which experiments are compared, flat: ``<row>.usage`` and so on."""
    figures = {
        f"{row.name}.{name}": row.figures[name] for row in study.rows for name in ("usage", study.rfd, "psnr_rgb")
    }
    return figures | {
        f"{row.name}.{name}": row.figures[name]
        for row in study.generators
        for name in (study.fd, study.precision, study.recall)
        if name in row.figures
    }


def _usage_csv(study: Study) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "step", "usage"])
    for row in study.rows:
        steps, usage = row.history.usage_steps.tolist(), row.history.usage.tolist()
        writer.writerows([row.name, step, value] for step, value in zip(steps, usage, strict=True))
    return file.getvalue()
