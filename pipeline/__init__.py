"""One short module per stage of ``dvc.yaml``: read parameters, call ``fvq``, write outputs. No science here."""

import os
import signal

if "SLURM_JOB_ID" in os.environ:
    # Slurm's warning reaches every process of a job. Those that can save a state heed it once they have one.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
