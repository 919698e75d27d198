"""What every stage shares: files that appear whole, seeds, the training loop, provenance."""
