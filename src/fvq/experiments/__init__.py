"""The paper's small experiments: the toy of Figure 2, its map of codes, and Figure 7."""
