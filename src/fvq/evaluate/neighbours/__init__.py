"""Figures by nearest neighbours, exact: precision, recall, density, coverage."""

from fvq.evaluate.neighbours.figures import DENSITY_NEIGHBOURS, NEIGHBOURS, NeighbourFigures, neighbour_figures

__all__ = ["DENSITY_NEIGHBOURS", "NEIGHBOURS", "NeighbourFigures", "neighbour_figures"]
