# The stages of dvc.yaml, one rule each under the same name: `snakemake -c2`, `snakemake -c2 train_tokenizer@fvq`.
# dvc.yaml is where a stage is written; pipeline/dag.py says which are stale and records in dvc.lock what was done.
import signal
import sys

from fvq.runtime.errors import one_line_errors
from pipeline.plan import Plan, read_stages

DEFAULTS = workflow.resource_settings.default_resources or {}
OPTIONS = DEFAULTS["slurm_extra"].raw if "slurm_extra" in DEFAULTS else ""
PAGE, FIGURES = "reports/index.html", "reports/figures"

with one_line_errors():
    if workflow.is_main_process:
        from pipeline import dag

        PLAN = dag.plan_run(DEFAULTS, workflow.resource_settings.overwrite_resources)
    else:
        # A job on a node is told what to run: it needs the stages, not their state.
        PLAN = Plan("", read_stages(), set(), {})
        # Slurm's warning is for the stage, which saves its state.
        signal.signal(signal.SIGUSR1, lambda *_: None)
        # The head prints a failed job's log: what the stage said must not drown in it.
        logger.setLevel("ERROR")


def declare(stage):
    """A stage's outputs as Snakemake knows them; page and figures stand in `snakemake --report` too.

    `update` leaves what is there in place, and puts it back where the job fails.
    """
    declared = {
        path: directory(path) if path in stage.folders else update(path)
        for path in stage.watched
    }
    if PAGE in declared:
        declared[PAGE] = report(declared[PAGE], category="Study")
    if FIGURES in stage.folders:
        declared[FIGURES] = report(
            directory(FIGURES), patterns=["{name}.svg"], category="Figures"
        )
    return list(declared.values())


rule all:
    default_target: True
    input:
        [path for stage in PLAN.stages for path in stage.watched],


for stage in PLAN.stages:

    rule:
        name:
            stage.name
        input:
            ticket=stage.ticket,
            # By its date, only the ticket can ask a fresh stage to run.
            upstream=[
                ancient(path) if stage.name in PLAN.fresh else path
                for path in stage.upstream
            ],
        output:
            declare(stage),
        # Slurm forgets jobs that have ended: what waits for one is submitted first.
        priority: 1 if stage.name in PLAN.earlier else 0
        threads: stage.threads
        resources:
            **stage.resources,
            **PLAN.queue_behind(stage, OPTIONS),
        params:
            python=sys.executable,
            name=stage.name,
        shell:
            "exec {params.python:q} -m pipeline.job {params.name}"


onstart:
    with one_line_errors():
        names = {job.rule.name for job in workflow.dag.needrun_jobs()}
        wanted = [stage.name for stage in PLAN.stages if stage.name in names]
        elsewhere = workflow.executor_plugin.common_settings.non_local_exec
        dag.start(PLAN, wanted, here=not elsewhere)


onsuccess:
    with one_line_errors():
        dag.tell_end(PLAN.study)
        dag.commit_finished()


onerror:
    with one_line_errors():
        dag.tell_failures(PLAN.study)
        dag.tell_end(PLAN.study)
        dag.commit_finished(renew=True)
