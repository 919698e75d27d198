"""Plots, image grids and the picture of the chain."""
