# The stages of dvc.yaml, one rule each under the same name: `snakemake -c2`, `snakemake -c2 train_tokenizer@fvq`.
# dvc.yaml is where a stage is written; pipeline/dag.py says which are stale and records in dvc.lock what was done.
from fvq.runtime.errors import one_line_errors
from pipeline import dag

with one_line_errors():
    # A job on another node is told what to run: it needs the stages, not their state.
    if workflow.is_main_process:
        dag.check_parameters()
        FRESH = dag.issue_tickets()
    else:
        FRESH = set()
    STAGES = dag.load_stages()


def declare(stage, path):
    """An output as Snakemake knows it. `update` leaves what is there in place, and puts it back where the job fails.

    What people look at stands in `snakemake --report` too.
    """
    declared = directory(path) if path in stage.folders else update(path)
    if path == "reports/index.html":
        return report(declared, category="Study")
    if path == "reports/figures":
        return report(declared, patterns=["{name}.svg"], category="Figures")
    return declared


rule all:
    default_target: True
    input:
        [path for stage in STAGES for path in stage.outputs],


for stage in STAGES:

    rule:
        name:
            stage.name
        input:
            ticket=str(stage.ticket),
            # By its date, only the ticket can ask a fresh stage to run.
            upstream=[
                ancient(path) if stage.name in FRESH else path
                for path in stage.upstream
            ],
        output:
            [declare(stage, path) for path in stage.outputs],
        threads: stage.threads
        resources:
            **stage.resources,
        params:
            # The default argument binds this stage's command now. With `input` named, Snakemake sees no parameter change.
            command=lambda wildcards, input, command=stage.command: command,
            receipt=str(stage.receipt),
        shell:
            """
            rm -f {params.receipt}
            ticket=$(cat {input.ticket})
            {params.command}
            echo "$ticket" >{params.receipt}
            """


onsuccess:
    with one_line_errors():
        dag.report(dag.commit())


onerror:
    with one_line_errors():
        dag.report(dag.commit(renew=True))
