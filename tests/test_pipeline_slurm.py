"""What the pipeline learns from Slurm's commands, here stand-ins, and from the variables of a job."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from fvq.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
TRAINING = "train_tokenizer@fvq"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A cluster for this process, which is in no job and works in a folder of its own."""
    monkeypatch.syspath_prepend(str(ROOT))  # the stages are run from there, and not installed
    for name in [name for name in os.environ if name.startswith(("SLURM", "FVQ_ADDRESS"))]:
        monkeypatch.delenv(name)
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.path)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    from pipeline import slurm

    monkeypatch.setattr(slurm, "_PATIENCE", 0)
    return fake


@pytest.fixture
def in_job(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeSlurm]:
    """Puts this process on node n2 into the job 7 of some nodes, as its only task."""

    def put(*nodes: str, tasks: int = 1, cores: str | None = "4") -> FakeSlurm:
        cluster.add("7", f"rule_{TRAINING}", Path.cwd(), nodes=nodes)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURMD_NODENAME", "n2")
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(tasks))
        if cores:
            monkeypatch.setenv("SLURM_CPUS_PER_TASK", cores)
        return cluster

    return put


def test_the_jobs_of_this_folder_by_stage(cluster: FakeSlurm, tmp_path: Path) -> None:
    from pipeline import slurm

    assert slurm.jobs_at_work() == {}
    here = Path.cwd()
    (tmp_path / "link").symlink_to(here)
    cluster.add("3", f"rule_{TRAINING}", here)
    cluster.add("12", f"rule_{TRAINING}", here, state="PENDING")
    cluster.add("13", "rule_render", tmp_path / "link")  # the head was started there
    cluster.add("14", "rule_render", here, state="CONFIGURING")
    cluster.add("15", "rule_sample@fvq", here, state="SUSPENDED")
    assert slurm.jobs_at_work() == {TRAINING: ["3", "12"], "render": ["13", "14"], "sample@fvq": ["15"]}


def test_jobs_of_others_are_not_ours(cluster: FakeSlurm, tmp_path: Path) -> None:
    from pipeline import slurm

    here = Path.cwd()
    cluster.add("1", f"rule_{TRAINING}", tmp_path / "another project")
    cluster.add("2", f"rule_{TRAINING}", here / "below")
    cluster.add("3", f"rule_{TRAINING}", tmp_path / "not|there")
    cluster.add("4", "(null)", here)
    cluster.add("5", "", here)
    cluster.add("6", "my|own | job", here)
    cluster.add("7", f"not rule_{TRAINING}", here)
    cluster.add("8", f"rule_{TRAINING}", here, state="COMPLETED")
    cluster.add("9", f"rule_{TRAINING}", here, state="FAILED")
    assert slurm.jobs_at_work() == {}


def test_a_folder_with_blanks_is_known(cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import slurm

    (tmp_path / "a | folder").mkdir()
    monkeypatch.chdir(tmp_path / "a | folder")
    cluster.add("3", f"rule_{TRAINING}", Path.cwd())
    assert slurm.jobs_at_work() == {TRAINING: ["3"]}


def test_comments_of_several_lines_are_passed_over(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    cluster.add("2", "first line\nrule_render", Path.cwd())
    cluster.add("3", f"rule_{TRAINING}", Path.cwd())
    assert slurm.jobs_at_work() == {TRAINING: ["3"]}


def test_a_job_that_comes_to_its_end_is_queued_behind_and_not_waited_for(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    cluster.add("3", f"rule_{TRAINING}", Path.cwd(), state="COMPLETING")
    assert slurm.jobs_at_work() == {TRAINING: ["3"]}
    assert not slurm.is_at_work("3")  # the stage's lock keeps others off until its state is saved


def test_without_slurm_no_job_is_at_work(cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import slurm

    cluster.add("3", f"rule_{TRAINING}", Path.cwd())
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert slurm.jobs_at_work() == {}
    assert not slurm.is_at_work("3")
    assert slurm.log_of("3") is None
    with pytest.raises(UserError, match=r"^scontrol: No such file or directory$"):
        slurm.requeue("3")


def test_slurms_programs_without_a_cluster_are_no_slurm(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    cluster.configured = False
    cluster.save()
    assert slurm.jobs_at_work() == {}
    assert not slurm.is_at_work("3")
    assert len(cluster.called("squeue")) == 2


@pytest.mark.parametrize("gone", ["the programs", "the cluster"])
def test_where_jobs_went_to_a_slurm_its_absence_is_told(
    cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """Taken for none, jobs that are at work would have their recipes changed."""
    from pipeline import slurm

    slurm.mark_use()
    assert slurm.jobs_at_work() == {}
    if gone == "the programs":
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    cluster.configured = False
    cluster.save()
    with pytest.raises(
        UserError, match=r"^squeue: there is no Slurm to be found, and jobs of this folder may be at wo"
    ):
        slurm.jobs_at_work()
    slurm.forget_use()
    assert slurm.jobs_at_work() == {}


def test_an_answer_is_waited_for(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import slurm

    cluster.add("3", f"rule_{TRAINING}", Path.cwd(), restarts=1)
    cluster.down = True
    cluster.save()

    def come_back(seconds: float) -> None:
        cluster.down = False
        cluster.save()

    monkeypatch.setattr(slurm, "_PATIENCE", 60)
    monkeypatch.setattr(slurm.time, "sleep", come_back)
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    assert slurm.was_restarted()
    assert len(cluster.called("scontrol")) == 2


def test_other_peoples_bytes_are_passed_over(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    name = Path.cwd()
    (cluster.folder / "squeue").write_bytes(
        b"#!/bin/sh\nprintf '2|RUNNING|caf\\351|/caf\\351\\n3|RUNNING|rule_render|%s\\n' '" + bytes(name) + b"'\n"
    )
    assert slurm.jobs_at_work() == {"render": ["3"]}


def test_states_with_flags_are_at_work(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    for number, state in enumerate(("REQUEUE_HOLD", "SPECIAL_EXIT", "STOPPED", "RESIZING")):
        cluster.add(str(number), f"rule_{TRAINING}", Path.cwd(), state=state)
    assert slurm.jobs_at_work() == {TRAINING: ["0", "1", "2", "3"]}
    assert slurm.waiting_jobs() == {TRAINING: ["0", "1"]}


def test_a_cluster_that_does_not_answer_is_told(cluster: FakeSlurm) -> None:
    """What its jobs do is unknown: taken for none, their stages would run a second time."""
    from pipeline import slurm

    cluster.down = True
    cluster.save()
    wanted = (
        r"^squeue: Slurm does not answer \(slurm_load_jobs error: Unable to contact slurm controller "
        r"\(connect failure\)\)$"
    )
    with pytest.raises(UserError, match=wanted):
        slurm.jobs_at_work()
    with pytest.raises(UserError, match=wanted):
        slurm.preempted_jobs()
    with pytest.raises(UserError, match=wanted):
        slurm.is_at_work("3")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("printf 'squeue: error: one\\nsqueue: fatal: two\\n' >&2; exit 1", "squeue: error: one squeue: fatal: two"),
        ("exit 3", "no reason given"),
    ],
)
def test_why_it_does_not_is_told_in_one_line(cluster: FakeSlurm, program: str, reason: str) -> None:
    from pipeline import slurm

    (cluster.folder / "squeue").write_text(f"#!/bin/sh\n{program}\n")
    with pytest.raises(UserError) as told:
        slurm.jobs_at_work()
    assert str(told.value) == f"squeue: Slurm does not answer ({reason})"


def test_whether_one_job_is_at_work(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    cluster.add("3", f"rule_{TRAINING}", Path.cwd())
    cluster.add("4", f"rule_{TRAINING}", Path.cwd(), state="COMPLETED")
    cluster.add("33", f"rule_{TRAINING}", Path.cwd(), state="PENDING")
    cluster.add("6", f"rule_{TRAINING}", Path.cwd(), state="CANCELLED")
    cluster.add("7", "any|comment", Path("/another/folder"), state="SUSPENDED")
    cluster.add("8", "of two\nlines", Path("/another/folder"), state="CONFIGURING")
    assert slurm.is_at_work("3")
    assert slurm.is_at_work("33")
    assert slurm.is_at_work("7")
    assert slurm.is_at_work("8")
    assert not slurm.is_at_work("4")
    assert not slurm.is_at_work("5")  # forgotten by Slurm, or never there
    assert not slurm.is_at_work("6")


def test_whether_this_job_was_started_before(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import slurm

    for number, restarts in (("3", 0), ("4", 1), ("5", 12)):
        cluster.add(number, f"rule_{TRAINING}", Path.cwd(), restarts=restarts)
    assert not slurm.was_restarted()  # in no job
    assert cluster.called("scontrol") == []
    for number, restarted in (("3", False), ("4", True), ("5", True), ("99", False)):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        assert slurm.was_restarted() is restarted
    cluster.down = True
    cluster.save()
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    with pytest.raises(UserError, match=r"^scontrol: Slurm does not answer \(slurm_load_jobs error: Unable to contact"):
        slurm.was_restarted()  # taken for the first start, a finished stage would run again


def test_the_log_of_a_job(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    cluster.add("3", "rule_render", Path("/shared/fvq"))
    assert slurm.log_of("3") == "/shared/fvq/runs/logs/rule_render/3.log"
    assert slurm.log_of("4") is None


def test_the_log_of_a_job_in_a_folder_with_blanks(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    cluster.add("3", "rule_render", Path("/shared/my own fvq"))
    assert slurm.log_of("3") == "/shared/my own fvq/runs/logs/rule_render/3.log"


def test_the_logs_of_a_stage_are_its_own_oldest_first(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    assert slurm.logs_of(TRAINING) == []
    paths = [Path(f"runs/logs/rule_{stage}/{job}.log") for stage, job in ((TRAINING, 12), (TRAINING, 9), ("render", 3))]
    for seconds, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1000 + seconds, 1000 + seconds))
    assert slurm.logs_of(TRAINING) == paths[:2]


def test_requeue_says_whether_slurm_does_it(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    assert slurm.requeue("3") is None
    cluster.requeues = False
    cluster.save()
    assert slurm.requeue("3") == "Job has already finished for job 3"
    assert cluster.called("scontrol") == ["requeue 3"] * 2


def test_jobs_that_wait(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    cluster.add("3", f"rule_{TRAINING}", Path.cwd(), state="PENDING")
    cluster.add("4", "rule_render", Path.cwd())
    cluster.add("5", "rule_sample@fvq", Path.cwd(), state="PREEMPTED")
    assert slurm.waiting_jobs() == {TRAINING: ["3"]}


def test_preempted_jobs_go_back_into_the_queue(
    cluster: FakeSlurm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.watch import requeue_preempted

    here = Path.cwd()
    cluster.add("3", f"rule_{TRAINING}", here, state="PREEMPTED")  # an earlier head's
    cluster.add("4", f"rule_{TRAINING}", here, state="PREEMPTED")
    cluster.add("5", "rule_render", here, state="FAILED")
    cluster.add("6", "rule_render", here)
    cluster.add("7", "rule_render", tmp_path, state="PREEMPTED")  # another folder's
    refused: set[str] = set()
    requeue_preempted({"3"}, refused)
    assert cluster.called("scontrol") == ["requeue 4"]
    assert capfd.readouterr().err == f"fvq: {TRAINING}: job 4 was preempted and goes back into the queue\n"
    assert not refused


def test_one_that_slurm_does_not_queue_again_is_told_once_and_asked_for_anew(
    cluster: FakeSlurm, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.watch import requeue_preempted

    cluster.add("4", f"rule_{TRAINING}", Path.cwd(), state="PREEMPTED")
    cluster.requeues = False
    cluster.save()
    refused: set[str] = set()
    requeue_preempted(set(), refused)
    assert (
        f"{TRAINING}: job 4 was preempted, and Slurm does not queue it again (Job has already finished for job 4);"
        in capfd.readouterr().err
    )
    requeue_preempted(set(), refused)
    assert capfd.readouterr().err == ""
    cluster.requeues = True
    cluster.save()
    requeue_preempted(set(), refused)
    assert "job 4 was preempted and goes back into the queue" in capfd.readouterr().err
    assert cluster.called("scontrol") == ["requeue 4"] * 3


def test_the_watch_tells_what_waits_until_ctrl_c(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import watch

    cluster.add("3", f"rule_{TRAINING}", Path.cwd(), state="PENDING")
    monkeypatch.setattr(watch, "_INTERVAL", 0.05)
    waiting, deadline = Path("waiting.json"), time.monotonic() + 20
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watch.watch_jobs(waiting)
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "watch of jobs")
        while not waiting.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert thread.is_alive()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        thread.join(20)
        assert not thread.is_alive()
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads(waiting.read_text())["stages"] == [TRAINING]


def test_outside_of_a_job_there_is_no_allocation(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    assert slurm.current_job() is None
    assert slurm.allocation() is None
    assert cluster.called("scontrol") == []


def test_one_node_is_no_allocation(in_job: Callable[..., FakeSlurm]) -> None:
    from pipeline import slurm

    in_job("n2", tasks=4)  # as many as one likes: they are one node's
    assert slurm.current_job() == "7"
    assert slurm.allocation() is None


def test_a_job_that_slurm_does_not_know_is_no_allocation(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import slurm

    monkeypatch.setenv("SLURM_JOB_ID", "99")
    assert slurm.allocation() is None


def test_two_nodes_with_this_one_first(in_job: Callable[..., FakeSlurm], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import slurm

    in_job("n1", "n2")
    assert slurm.allocation() == slurm.Allocation("7", ("n2", "n1"), cores=4, address="10.0.0.2")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert slurm.allocation() == slurm.Allocation("7", ("n1", "n2"), cores=4, address="10.0.0.1")
    monkeypatch.setenv("FVQ_ADDRESS", "node1-ib")
    assert slurm.allocation() == slurm.Allocation("7", ("n1", "n2"), cores=4, address="node1-ib")


def test_what_slurm_does_not_say(in_job: Callable[..., FakeSlurm]) -> None:
    from pipeline import slurm

    cluster = in_job("n1", "n2", cores=None)
    cluster.addresses = {}
    cluster.save()
    assert slurm.allocation() == slurm.Allocation("7", ("n2", "n1"), cores=1, address=socket.gethostname())


def test_several_tasks_are_refused(in_job: Callable[..., FakeSlurm]) -> None:
    from pipeline import slurm

    in_job("n1", "n2", tasks=2)
    with pytest.raises(UserError, match=r"^srun started this stage several times: start it once[^\n]*$"):
        slurm.allocation()


def test_variables_without_those_of_the_step(cluster: FakeSlurm) -> None:
    from pipeline import slurm

    kept = {"SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_JOB_ID": "7", "PATH": "/bin", "FVQ_PROCESSES": "2"}
    step = {
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS": "1",
        "SLURM_CPU_BIND": "none",
        "SRUN_DEBUG": "3",
        "SBATCH_EXPORT": "NONE",
    }
    given = kept | step
    assert slurm.without_step(given) == kept
    assert given == kept | step
