"""Labelled images: where they come from, the Parquet tables that hold them, and their way into a model."""
