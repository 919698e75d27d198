"""Tests on a real Slurm: ``make test-slurm``."""
