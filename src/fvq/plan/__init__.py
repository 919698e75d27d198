"""What a study costs before it runs: compute, memory and storage of each of its rows."""
