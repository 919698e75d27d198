"""The paper's tables with measured rows beside the printed ones."""
