"""A finished study, rendered: the paper's tables with measured figures beside them, plots, one offline page."""

from fvq.study.render import render_study

__all__ = ["render_study"]
