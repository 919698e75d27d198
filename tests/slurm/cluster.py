"""A real Slurm of two nodes with pretended GPUs on this machine, which leaves nothing behind."""

import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import pytest

T = TypeVar("T")

NODES = ("n1", "n2")
START_SECONDS = 60
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "sbatch": "slurm-client",
    "squeue": "slurm-client",
    "munged": "munge",
}
"""Programs that a cluster needs, and the Debian packages they are in."""

DEFAULT_CONF = Path("/etc/slurm/slurm.conf")
# Below the range from which Linux takes ports of outgoing connections: a node finds its port free when it comes back.
PORTS = range(20_000, 32_000)
# Daemons are in folders that a user's PATH may lack.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# Jobs of main and spare make way for those of urgent: main's are told and go back into the queue, spare's are killed.
# cred_expire is also how long a requeued job waits. A node that does not answer is down after about SlurmdTimeout and
# MessageTimeout together.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
JobRequeue=1
InactiveLimit=0
KillWait={kill_wait}
SlurmdTimeout=10
BatchStartTimeout=30
MessageTimeout=6
MinJobAge=300
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} {resources}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} {resources}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE GraceTime=20 State=UP
PartitionName=gpu Nodes=n1,n2 MaxTime=INFINITE State=UP
PartitionName=short Nodes=n1,n2 MaxTime=2 State=UP
PartitionName=spare Nodes=n1,n2 PreemptMode=CANCEL State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF State=UP
"""


class Job(NamedTuple):
    """A job as ``squeue`` shows it, until five minutes after its end."""

    id: int
    name: str
    comment: str
    state: str
    node: str
    reason: str
    workdir: str


def missing() -> str | None:
    """Why no cluster can be started here, None where one can."""
    if os.geteuid() != 0:
        return "a Slurm for tests is started by root only"
    absent = [package for program, package in PACKAGES.items() if shutil.which(program, path=PATH) is None]
    if absent:
        return f"not installed: apt-get install --no-install-recommends {' '.join(dict.fromkeys(absent))}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_device(Path(folder) / "gpu0")
        except OSError as error:
            return f"device nodes for pretended GPUs cannot be made: {error}"
    return None


class Cluster:
    """The daemons of one cluster; made by ``slurm_cluster``.

    Attributes:
        folder: what stays for reading afterwards: ``slurm.conf``, ``gres.conf`` and ``logs/``.
        run_folder: keys, sockets, spools, device nodes and the controller's state; gone when the cluster is. Its path
            is short, since a socket's may have 107 characters only.
        environment: the variables that make ``sbatch``, ``srun`` and their like talk to this cluster.
    """

    def __init__(self, folder: Path, *, cores_per_node: int, memory_mb: int, gpus: int, kill_wait: int) -> None:
        self.folder = folder.resolve()
        self.run_folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._machines: dict[str, list[subprocess.Popen[bytes]]] = {}

        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        (self.run_folder / "state").mkdir()
        gres = []
        for node in NODES:
            (self.run_folder / node).mkdir()
            for gpu in range(gpus):
                _make_device(self.run_folder / node / f"gpu{gpu}")
            if gpus:
                gres.append(f"NodeName={node} Name=gpu Type=a100 File={self.run_folder}/{node}/gpu[0-{gpus - 1}]\n")
        (self.folder / "gres.conf").write_text("".join(gres))
        resources = f"CPUs={cores_per_node} RealMemory={memory_mb}" + (f" Gres=gpu:a100:{gpus}" if gpus else "")
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=socket.gethostname().split(".")[0],
                ports=_free_ports(1 + len(NODES)),
                run=self.run_folder,
                kill_wait=kill_wait,
                resources=resources,
            )
        )
        key = self.run_folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def run(self, *command: str, code: int | None = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this cluster; it must exit with ``code``, None for any but 0. ``more`` are variables."""
        finished = subprocess.run(
            command,
            cwd=self.folder,
            env={**_outside_slurm(), **self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        as_wanted = finished.returncode != 0 if code is None else finished.returncode == code
        assert as_wanted, f"{' '.join(command)} exited with {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
        return finished

    def submit(self, script: str, *options: str) -> int:
        """The number of a new batch job that runs ``script`` in ``folder`` with sh; ``options`` are those of sbatch."""
        return int(self.run("sbatch", "--parsable", *options, f"--wrap={script}").stdout)

    def jobs(self) -> list[Job]:
        """All jobs that wait, run, or ended less than five minutes ago, oldest first."""
        fields = "\x1f".join(["%A", "%j", "%k", "%T", "%N", "%r", "%Z"])
        listed = self.run("squeue", "--all", "--states=all", "--noheader", "--sort=i", f"--format={fields}").stdout
        rows = [line.split("\x1f") for line in listed.splitlines()]
        return [Job(int(number), *others) for number, *others in rows]

    def job(self, number: int) -> Job:
        """One of ``jobs``."""
        return next(job for job in self.jobs() if job.id == number)

    def cancel(self, number: int, signal: str | None = None) -> None:
        """``scancel``; a ``signal`` such as USR1 reaches the job's steps, and not its batch script."""
        self.run("scancel", *([f"--signal={signal}"] if signal else []), str(number))

    def node_states(self) -> dict[str, str]:
        """State of each node as ``sinfo`` shows it; a star at its end: the node does not answer."""
        listed = self.run("sinfo", "--noheader", "--partition=main", "--Node", "--format=%N %T").stdout
        return dict(line.split() for line in listed.splitlines())

    def wait_for(self, condition: Callable[[], T], seconds: float, what: str) -> T:
        """Wait until ``condition`` is true and return it.

        Raises:
            AssertionError: it is not within ``seconds``; shows jobs, nodes and the ends of the logs.
        """
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {seconds:g} s\n{self._view()}")
            time.sleep(0.3)
        return value

    def log(self, name: str) -> str:
        """What ``munged``, ``slurmctld``, or the slurmd of ``n1`` or ``n2`` printed."""
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def kill_node(self, name: str, *, power: bool = False) -> None:
        """SIGKILL for a node's slurmd, whose jobs go on; with ``power`` for all that runs on the node."""
        if power:
            self._end_machines(name)
            return
        for machine in self._machines[name]:
            for process in psutil.Process(machine.pid).children():
                with suppress(psutil.NoSuchProcess):  # orphans of the node's jobs, which end
                    if process.name() == "slurmd":
                        process.kill()
                        process.wait()

    def start_node(self, name: str) -> None:
        """Start a killed node's slurmd and wait until the controller has it back."""
        self._start(name, "slurmd", "-D", "-N", name)
        self.wait_for(
            lambda: self.node_states()[name] in ("idle", "mixed", "allocated"), START_SECONDS, f"{name} is back"
        )

    def leftovers(self) -> list[str]:
        """Processes of this cluster that are alive; after its end there should be none."""
        return [_describe(process) for process in self._processes()]

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Let commands without any variables talk to this cluster. Skips where the machine has a Slurm of its own."""
        if DEFAULT_CONF.exists():
            pytest.skip(f"{DEFAULT_CONF} is there: this machine has a Slurm of its own")
        DEFAULT_CONF.unlink(missing_ok=True)  # the link of tests that were killed
        DEFAULT_CONF.parent.mkdir(exist_ok=True)
        DEFAULT_CONF.symlink_to(self.folder / "slurm.conf")
        try:
            yield
        finally:
            DEFAULT_CONF.unlink(missing_ok=True)

    def start(self) -> None:
        """Start every daemon and wait until both nodes are idle."""
        self._start(
            "munged",
            *("munged", "--foreground", "--force", "--num-threads=2"),
            *(f"--{file}-file={self.run_folder}/munge.{file}" for file in ("key", "pid", "seed")),
            f"--socket={self.run_folder}/munge.socket",
        )
        self.wait_for((self.run_folder / "munge.socket").exists, START_SECONDS, "munged is up")
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self._start(node, "slurmd", "-D", "-N", node)
        self.wait_for(self._all_idle, START_SECONDS, "both nodes are idle")

    def stop(self) -> None:
        """End every daemon, job and client of this cluster, and remove ``run_folder``."""
        # Without the controller no further job begins.
        self._end_machines("slurmctld")
        machines = {machine.pid for started in self._machines.values() for machine in started}
        processes = [process for process in self._processes() if process.pid not in machines]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = psutil.wait_procs(processes, timeout=5)
        for process in stubborn:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for name in list(self._machines):
            self._end_machines(name)
        shutil.rmtree(self.run_folder, ignore_errors=True)

    def _start(self, name: str, *command: str) -> None:
        """Start a daemon on a machine of its own, in a session that Ctrl-C does not reach before ``stop``."""
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            machine = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("machine.py")), *command],
                cwd=self.folder,
                env={**_outside_slurm(), **self.environment, "PATH": PATH},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._machines.setdefault(name, []).append(machine)

    def _end_machines(self, name: str) -> None:
        for machine in self._machines.pop(name, []):
            machine.communicate()

    def _all_idle(self) -> bool:
        # The controller answers a moment after its start.
        listed = self._shown("sinfo", "--noheader", "--partition=main", "--Node", "--format=%T")
        return listed.split() == ["idle"] * len(NODES)

    def _processes(self) -> list[psutil.Process]:
        """Processes that were started with this cluster's variables."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if self.environment.items() <= process.environ().items():
                    found.append(process)
        return found

    def _shown(self, *command: str) -> str:
        environment = {**_outside_slurm(), **self.environment}
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return finished.stdout + finished.stderr

    def _view(self) -> str:
        parts = [self._shown("squeue", "--all", "--states=all"), self._shown("sinfo", "--long", "--Node")]
        for name in self._machines:
            parts.append(f"{name}:\n" + "\n".join(self.log(name).splitlines()[-15:]))
        return "\n".join(parts)


@contextmanager
def slurm_cluster(
    folder: Path, *, cores_per_node: int = 1, memory_mb: int = 16_000, gpus: int = 8, kill_wait: int = 10
) -> Iterator[Cluster]:
    """A running cluster: idle nodes n1 and n2; partitions main (the default), gpu, short (two minutes at most), and
    spare and urgent, for whose jobs those of the others make way.

    Cores, memory and GPUs are what Slurm counts; this machine need not have them.

    Args:
        folder: where its configuration and logs go; they stay.
        cores_per_node: cores of each node.
        memory_mb: memory of each node in MiB.
        gpus: pretended A100s of each node.
        kill_wait: seconds between SIGTERM and SIGKILL for a job that is cancelled or over its time.

    Raises:
        AssertionError: it does not come up, with the ends of its logs.
    """
    cluster = Cluster(folder, cores_per_node=cores_per_node, memory_mb=memory_mb, gpus=gpus, kill_wait=kill_wait)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _make_device(path: Path) -> None:
    """A device node like /dev/null: slurmd looks for the file of a GPU only."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.Random().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"no {count} free ports in {PORTS}")


def _outside_slurm() -> dict[str, str]:
    """The environment without the allocation in which the tests may run."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH_", "SRUN_"))}


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.Error:
        return str(process.pid)
