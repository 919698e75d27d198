"""The plot of VQBridge's own settings (the shape of the paper's Figure 6)."""

from collections.abc import Sequence

from fvq.runtime.text import count, percent
from fvq.study.drawings.drawing import Plot, hover
from fvq.study.drawings.measured import bars_in_words, draw_bars
from fvq.study.drawings.palette import COLOURS, hues, row_colours
from fvq.study.drawings.style import bare
from fvq.study.groups import BridgeSetting, base_row, bridge_sweeps
from fvq.study.measured import measured
from fvq.study.results import Study, TokenizerRow
from fvq.study.settings import describe
from fvq.study.tables.notes import distance_label

_TITLES: dict[BridgeSetting, str] = {
    "width": "width d' of a token",
    "depth": "blocks N",
    "patch": "codes a token p",
}


def bridge_figure(study: Study) -> Plot:
    """Distance of reconstructions against each setting of the bridge, with the usage at each point."""
    sweeps = bridge_sweeps(study.rows)
    figure = Plot(figsize=(8, 3.5))
    panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    base = base_row(study.rows)
    colour, size_of_base = row_colours(study.rows)[base.name], int(base.settings["codebook_size"])
    shown = []
    for axes, (name, swept) in zip(panels, sweeps.items(), strict=True):
        curves = _by_size(swept)
        settings = sorted({describe(row)[name] for row in swept})
        others = iter(hues(COLOURS[5], len(curves) - (size_of_base in curves)))
        for size, rows in curves.items():
            hue = colour if size == size_of_base else next(others)
            places = [settings.index(describe(row)[name]) for row in rows]
            distances = [measured(row, study.rfd) for row in rows]
            values = [distance.value for distance in distances]
            shown += distances
            axes.plot(places, values, marker="o", markersize=5, linewidth=1.5, color=hue, label=f"{count(size)} codes")
            texts = []
            for place, row, distance in zip(places, rows, distances, strict=True):
                draw_bars(axes, place, distance.value, hue, across=None, along=distance)
                usage = percent(row.mean("usage"))
                axes.annotate(
                    usage,
                    (place, distance.value + (distance.spread or 0)),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
                setting = f"{_TITLES[name]}: {settings[place]}"
                texts.append(f"{row.label}\n{setting}\n{study.rfd} {distance.text}\nusage {usage}")
            hover(axes, places, values, texts, hue)
        axes.set_xticks(range(len(settings)), [count(setting) for setting in settings])
        axes.set_xlim(-0.5, len(settings) - 0.5)
        axes.margins(y=0.18)
        axes.set_title(_TITLES[name], fontsize=10, loc="left")
        if len(curves) > 1:
            axes.legend(fontsize=8, handlelength=1.6)
        bare(axes)
    panels[0].set_ylabel(f"{distance_label(study, study.rfd)}, lower is better")
    figure.supxlabel("; ".join(filter(None, ["at each point: codebook usage", bars_in_words(shown)])), fontsize=9)
    return figure


def _by_size(rows: Sequence[TokenizerRow]) -> dict[int, list[TokenizerRow]]:
    curves: dict[int, list[TokenizerRow]] = {}
    for row in rows:
        curves.setdefault(int(row.settings["codebook_size"]), []).append(row)
    return curves
