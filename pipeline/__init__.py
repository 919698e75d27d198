"""One short module per stage of ``dvc.yaml``: read parameters, call ``fvq``, write outputs. No science here."""
