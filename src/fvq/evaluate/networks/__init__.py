"""The networks whose features are compared, and where their weights are found."""
