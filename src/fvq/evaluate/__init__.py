"""Figures of merit: Fréchet distance, Inception Score, precision and recall, reconstruction error, codebook usage."""
