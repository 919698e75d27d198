"""The one page that shows a study: self-contained HTML that opens offline."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fvq.runtime.text import count, duration, expected, model_size, percent, significant
from fvq.study import observations
from fvq.study.claims.verdicts import Claim, Verdict
from fvq.study.drawings.drawing import Drawing
from fvq.study.drawings.figures import reconstructed_rows
from fvq.study.drawings.graph import chain_svg
from fvq.study.drawings.palette import row_colours
from fvq.study.drawings.pictures import ERROR_SCALE, error_images
from fvq.study.groups import compared_rows
from fvq.study.guidance import nearest_in_words
from fvq.study.page.images import Grid, fitting_grid, strip_uri
from fvq.study.page.plots import inline_svg, points_json
from fvq.study.page.protocol import protocol_lines
from fvq.study.page.provenance import anchor, commit_in_words, distinct, runs_by_row, started_in_words, titled_commands
from fvq.study.page.rows import row_cells
from fvq.study.page.tables import detail_parts, is_remark, scripted, sortable_cells
from fvq.study.paper import TITLE
from fvq.study.results import Study
from fvq.study.tables.build import Table
from fvq.study.tables.cells import ABSENT, codes_in_words, figure_text, tokens_in_words, usage_cell
from fvq.study.tables.formats import NO_KIN, NOT_MEASURED, QUOTED
from fvq.study.tables.notes import (
    PAPER_LABEL,
    beside_paper,
    distance_notes,
    images_in_words,
    measured_label,
    samples_in_words,
    seed_notes,
)

_SECTIONS = (
    "what",
    "verdicts",
    "rows",
    "curves",
    "across",
    "tables",
    "reconstructions",
    "samples",
    "guidance",
    "experiments",
    "runs",
    "commands",
    "protocol",
    "files",
)
# Of more rows than this, most bars and the longest tables are folded.
_ROWS = 12
# What more commands than this there are is folded.
_COMMANDS = 12
# Bytes of pixels of all reconstructions with their errors, and of all samples: with the plots some 6 MB at most.
_RECONSTRUCTIONS, _SAMPLES = 2_900_000, 1_500_000
_KINDS = {"holds": "holds", "fails": "fails", "not testable at this scale": "untestable"}
_MARKS = {"holds": "✓", "fails": "✗", "not testable at this scale": "–"}
_PLURALS = {"holds": "hold", "fails": "fail"}


def render_report(
    study: Study,
    figures: Mapping[str, Drawing],
    links: Sequence[str],
    *,
    claims: Sequence[Claim],
    tables: Sequence[Table],
    guidance: Table | None,
) -> str:
    """The page as HTML. ``figures`` are by stem, ``links`` the other files relative to the page."""
    environment = Environment(
        loader=PackageLoader("fvq.study", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count,
        percent=percent,
        expected=expected,
        significant=significant,
        duration=duration,
        size=model_size,
        subscripts=subscripts,
        scripted=scripted,
        parts=detail_parts,
        points=points_json,
        kind=_KINDS.__getitem__,
        mark=_MARKS.__getitem__,
        plural=lambda verdict, times: verdict if times == 1 else _PLURALS.get(verdict, verdict),
    )
    environment.tests["remark"] = is_remark
    colours = row_colours(study.rows)
    many = len(study.rows) > _ROWS
    first = compared_rows(study.rows) if many else list(study.rows)
    pictured, pictured_in_words = reconstructed_rows(study)
    commands = titled_commands(study)
    return environment.get_template("page.html.j2").render(
        sections=_SECTIONS,
        style=_text("style.css"),
        script=_text("script.js"),
        study=study,
        paper_title=TITLE,
        paper_label=PAPER_LABEL,
        measured_label=measured_label(study),
        beside_paper=beside_paper(study),
        colours=colours,
        generator_colours={row.name: colours[row.tokenizer] for row in study.generators},
        many=many,
        first_rows=first,
        further_rows=[row for row in study.rows if row not in first],
        pictured_rows=pictured,
        pictured_in_words=pictured_in_words,
        folded_rows=[row for row in study.rows if row not in pictured],
        anchor=anchor,
        evaluation=lambda row: study.run("evaluate_tokenizer", row.name),
        usage_cell=usage_cell,
        codes_in_words=codes_in_words,
        row_cells=row_cells,
        row_notes=[
            *distance_notes({study.rfd: [row.figures for row in study.rows if not row.repeats]}),
            *seed_notes(study.rows),
        ],
        figure_text=figure_text,
        images_in_words=images_in_words(study.rows),
        usage_samples=usage_samples(study),
        claims=claims,
        outcomes=outcomes(claims),
        outcome=outcome_in_words(claims),
        seeds=seeds_in_words(study),
        tables=tables,
        sortable_cells=sortable_cells,
        unsorted=("", ABSENT, NO_KIN, NOT_MEASURED, QUOTED),
        figures=figures,
        inline_svg=inline_svg,
        observations=observations,
        strip=strip_uri,
        grid=fitting_grid(1 + 2 * len(study.rows), study.rows[0].original, _RECONSTRUCTIONS),
        sample_grid=_sample_grid(study),
        error_images=error_images,
        error_scale=ERROR_SCALE,
        samples_in_words=samples_in_words(study) if study.generators else "",
        protocols=protocols(study),
        protocol_lines=protocol_lines,
        guidance=guidance,
        nearest_in_words=nearest_in_words,
        tokenizer_labels={row.name: row.label for row in study.rows},
        generator_labels={row.name: row.label for row in study.generators},
        chain=chain_svg(study),
        stages=list(dict.fromkeys(run.stage for run in study.runs)),
        runs_by_row=runs_by_row(study),
        total_seconds=sum(run.wall_seconds or 0 for run in study.runs),
        recorded=sum(run.recorded for run in study.runs),
        hardware=distinct([run.hardware for run in study.runs]),
        commits=distinct([commit_in_words(run) for run in study.runs]),
        commit_in_words=commit_in_words,
        started_in_words=started_in_words,
        first_commands=commands[:_COMMANDS],
        further_commands=commands[_COMMANDS:],
        links=links,
    )


def _text(name: str) -> Markup:
    """A file of the page's own."""
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8").rstrip("\n"))


def usage_samples(study: Study) -> list[tuple[str, list[str]]]:
    """How many tokens usage was counted over, with the ceiling, and the labels of the rows that this holds for."""
    labels: dict[str, list[str]] = {}
    for row in study.rows:
        labels.setdefault(tokens_in_words(row), []).append(row.label)
    return list(labels.items())


def outcomes(claims: Sequence[Claim]) -> dict[Verdict, int]:
    """How many claims have each verdict."""
    verdicts = Counter(claim.verdict for claim in claims)
    return {verdict: verdicts[verdict] for verdict in get_args(Verdict)}


def outcome_in_words(claims: Sequence[Claim]) -> str:
    """How many claims hold."""
    holds, fails, rest = outcomes(claims).values()
    verbs = ("holds" if holds == 1 else "hold", "fails" if fails == 1 else "fail", "is" if rest == 1 else "are")
    return (
        f"Of {len(claims)} claims, {holds} {verbs[0]}, {fails} {verbs[1]} and {rest} {verbs[2]} "
        "not testable at this scale."
    )


def seeds_in_words(study: Study) -> str:
    """How many seeds the figures stand on."""
    repeated = [row for row in study.rows if row.repeats]
    alone = f"one seed here ({study.seed}): small differences can be chance"
    if not repeated:
        return f"There is {alone}."
    seeds = ", ".join(str(seed) for seed in (study.seed, *sorted({seed for row in repeated for seed in row.repeats})))
    some = f"{len(repeated)} of the {len(study.rows)}" if len(repeated) < len(study.rows) else "All"
    return f"{some} rows ran with several seeds ({seeds})" + (
        f"; of the others there is {alone}." if len(repeated) < len(study.rows) else "."
    )


def protocols(study: Study) -> list[tuple[str, dict[str, str]]]:
    """What was measured, and by which protocol."""
    found = [
        (f"Tokenizers: usage, MSE, PSNR, SSIM, LPIPS, {study.rfd}", study.tokenizer_protocol),
        (f"Generators: {study.fd}, {study.score}, {study.precision}, {study.recall}", study.generator_protocol),
        *((f"Tokenizers on {image_set}", protocol) for image_set, protocol in study.elsewhere.items()),
    ]
    return [(title, protocol) for title, protocol in found if protocol]


def _sample_grid(study: Study) -> Grid | None:
    lines = [images for row in study.generators for images in row.samples.values()]
    return fitting_grid(len(lines), lines[0], _SAMPLES) if lines else None


def subscripts(text: str) -> Markup:
    """Escaped text with z_e, z_q, δ_z and δ_c as one writes them."""
    return Markup(re.sub(r"(z|δ)_([eqzc])\b", r"\1<sub>\2</sub>", str(escape(text))))
