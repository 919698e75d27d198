"""The one page that shows a study: self-contained HTML that opens offline."""

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from fvq.evaluate.record import NONE
from fvq.runtime.text import count, duration, expected, grouped, model_size, percent, significant
from fvq.study import observations
from fvq.study.archives import Images
from fvq.study.figures import strip
from fvq.study.formats import side_by_side
from fvq.study.guidance import nearest_in_words
from fvq.study.guidance_table import guidance_headings, guidance_lines, guidance_notes
from fvq.study.palette import row_colours
from fvq.study.paper import TITLE
from fvq.study.results import Study
from fvq.study.runs import StageRun
from fvq.study.style import INK, RULE
from fvq.study.tables import (
    PAPER_LABEL,
    build_tables,
    distance_cell,
    distance_notes,
    figure_text,
    images_in_words,
    measured_label,
    samples_in_words,
    usage_cell,
)
from fvq.study.verdicts import Claim, judge


def render_report(study: Study, figures: Mapping[str, str], links: Sequence[str]) -> str:
    """The page as HTML. ``figures`` are SVG texts by stem, ``links`` the other formats relative to the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        count=count,
        percent=percent,
        expected=expected,
        significant=significant,
        duration=duration,
        size=model_size,
        subscripts=subscripts,
    )
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    claims = judge(study)
    return template.render(
        study=study,
        paper_title=TITLE,
        paper_label=PAPER_LABEL,
        measured_label=measured_label(study),
        colours=(colours := row_colours(study.rows)),
        generator_colours={row.name: colours[row.tokenizer] for row in study.generators},
        usage_cell=usage_cell,
        distance_cell=distance_cell,
        distance_notes=distance_notes([row.figures for row in study.rows], study.rfd),
        figure_text=figure_text,
        images_in_words=images_in_words(study.rows),
        claims=claims,
        tables=build_tables(study),
        side_by_side=side_by_side,
        figures=figures,
        plot=lambda stem: inline_svg(figures[stem], stem),
        observations=observations,
        usage_samples=usage_samples(study),
        outcome=outcome_in_words(claims),
        strip=strip_uri,
        samples_in_words=samples_in_words(study) if study.generators else "",
        protocol_lines=protocol_lines,
        guidance_headings=guidance_headings(study),
        guidance_lines=guidance_lines(study),
        guidance_notes=guidance_notes(study),
        nearest_in_words=nearest_in_words,
        tokenizer_labels={row.name: row.label for row in study.rows},
        generator_labels={row.name: row.label for row in study.generators},
        stages=list(dict.fromkeys(run.stage for run in study.runs)),
        wall_times=wall_times(study),
        total_seconds=sum(run.wall_seconds or 0 for run in study.runs),
        recorded=sum(run.wall_seconds is not None for run in study.runs),
        hardware=_distinct([run.hardware for run in study.runs]),
        commits=_distinct([commit_in_words(run) for run in study.runs]),
        commit_in_words=commit_in_words,
        links=links,
    )


def usage_samples(study: Study) -> list[tuple[str, list[str]]]:
    """How many tokens usage was counted over, with the ceiling, and the labels of the rows that this holds for."""
    labels: dict[str, list[str]] = {}
    for row in study.rows:
        labels.setdefault(usage_cell(row).detail, []).append(row.label)
    return list(labels.items())


def outcome_in_words(claims: Sequence[Claim]) -> str:
    """How many claims hold."""
    verdicts = Counter(claim.verdict for claim in claims)
    parts = [
        "1 holds" if verdicts["holds"] == 1 else f"{verdicts['holds']} hold",
        "1 does not" if verdicts["does not hold"] == 1 else f"{verdicts['does not hold']} do not",
        *([f"{verdicts['too close to call']} too close to call"] if verdicts["too close to call"] else []),
        *([f"{verdicts['not measured here']} cannot be told here"] if verdicts["not measured here"] else []),
    ]
    return f"Of {len(claims)} claims, {', '.join(parts)}."


_PROTOCOL_FIELDS = {
    "protocol": "protocol",
    "protocol_extractor": "extractor",
    "protocol_extractor_sha256": "SHA-256 of its weights",
    "protocol_resize": "resizing for it",
    "protocol_preparation": "preparation of the images",
    "protocol_images": "images",
    "protocol_reference": "reference",
    "protocol_reference_images": "reference images",
    "protocol_reference_sha256": "SHA-256 of the reference",
    "protocol_score": "groups of the score",
    "protocol_neighbours": "neighbours k",
    "protocol_density_neighbours": "neighbours k of density and coverage",
    "protocol_neighbours_on": "network of neighbours",
    "protocol_neighbours_sha256": "SHA-256 of its weights",
    "protocol_neighbours_reference_images": "reference images of neighbours",
    "protocol_distances": "distances of neighbours",
    "protocol_seed": "seeds of what it draws",
    "protocol_lpips_alex": "LPIPS on AlexNet",
    "protocol_lpips_vgg": "LPIPS on VGG16",
}


def protocol_lines(protocol: Mapping[str, str]) -> list[tuple[str, str]]:
    """A protocol's fields as people call them, with their values; without those of figures that were not asked for."""
    fields = [*(field for field in _PROTOCOL_FIELDS if field in protocol), *sorted(protocol.keys() - _PROTOCOL_FIELDS)]
    return [
        (_PROTOCOL_FIELDS.get(field, field.removeprefix("protocol_").replace("_", " ")), _value(field, protocol[field]))
        for field in fields
        if protocol[field] != NONE or field == "protocol_resize"
    ]


def _value(field: str, value: str) -> str:
    return grouped(value) if field.endswith("images") else value


def strip_uri(images: Images) -> str:
    """Images in one line as the data address of a PNG."""
    file = io.BytesIO()
    Image.fromarray(strip(images)).save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def subscripts(text: str) -> Markup:
    """Escaped text with z_e, z_q, δ_z and δ_c as one writes them."""
    return Markup(re.sub(r"(z|δ)_([eqzc])\b", r"\1<sub>\2</sub>", str(escape(text))))


def inline_svg(text: str, name: str) -> Markup:
    """An SVG file's drawing for use inside a page: no background, the page's colours, ids that no other drawing has."""
    text = text[text.index("<svg") :]
    text = re.sub(r' (?:width|height)="[^"]*pt"', "", text, count=2)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{name}-", text)
    text = text.replace("*{", ".plot *{")
    text = text.replace("fill: #ffffff", "fill: none").replace(INK, "currentColor").replace(RULE, "var(--rule)")
    # Everything in it was drawn and escaped by matplotlib.
    return Markup(text)


def wall_times(study: Study) -> list[tuple[str | None, list[str]]]:
    """Wall times: a line for what runs once and one for each row and generator, a cell for each stage ('' for none)."""
    runs = {(run.row, run.stage): run for run in study.runs}
    stages = dict.fromkeys(run.stage for run in study.runs)
    return [
        (row, [_wall_time(runs.get((row, stage))) for stage in stages])
        for row in dict.fromkeys(run.row for run in study.runs)
    ]


def _wall_time(run: StageRun | None) -> str:
    if run is None:
        return ""
    return "not recorded" if run.wall_seconds is None else duration(run.wall_seconds)


def commit_in_words(run: StageRun) -> str | None:
    """The commit's first twelve digits, and whether the working tree had other changes."""
    return run.commit and run.commit[:12] + (", with uncommitted changes" if run.dirty else "")


def _distinct(entries: Sequence[str | None]) -> list[tuple[str, int]]:
    return Counter(entry or "not recorded" for entry in entries).most_common()
