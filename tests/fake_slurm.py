"""Stand-ins for Slurm's commands, which print what those of Slurm 22.05 print."""

import json
import os
import sys
from pathlib import Path
from typing import Any

JOB = (
    "JobId={id} JobName=1b2c-3d UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901758 Nice=0 Account=(null) "
    "QOS=(null) JobState={state} Reason=None Dependency=(null) Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 "
    "ExitCode=0:0 RunTime=00:00:03 TimeLimit=01:00:00 TimeMin=N/A Partition=main AllocNode:Sid=host:321 "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList={nodelist} BatchHost={nodes[0]} NumNodes={count} NumCPUs=2 "
    "NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=2,mem=8000M,node=2,billing=2 Socks/Node=* "
    "Features=(null) Licenses=(null) Command=(null) WorkDir={folder} Comment={comment} StdErr={log} "
    "StdIn=/dev/null StdOut={log} Power= "
)
NODE = (
    "NodeName={node} Arch=x86_64 CoresPerSocket=1 CPUAlloc=1 CPUTot=1 CPULoad=1.09 AvailableFeatures=(null) "
    "Gres=gpu:a100:8 NodeAddr={address} NodeHostName=host Port=17001 Version=22.05.8 OS=Linux 6.1 State=ALLOCATED "
    "TmpDisk=0 Partitions=main CfgTRES=cpu=1,mem=16000M,billing=1,gres/gpu=8 AllocTRES=cpu=1,mem=4000M "
)

# Each reads the cluster beside it, as Slurm's commands ask the controller.
BOTH = """\
import json, os, pathlib, sys

here = pathlib.Path(__file__).parent
cluster = json.loads((here / "cluster.json").read_text())
with (here / "called.txt").open("a") as file:
    print(pathlib.Path(__file__).name, *sys.argv[1:], file=file)
"""
PROGRAMS = {
    "squeue": """\
if not cluster["configured"]:
    sys.exit(
        "squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\\n"
        "squeue: error: fetch_config: DNS SRV lookup failed\\n"
        "squeue: error: _establish_config_source: failed to fetch config\\n"
        "squeue: fatal: Could not establish a configuration source"
    )
if cluster["down"]:
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
for job in cluster["jobs"]:
    if options.get("states") == "all" or job["state"] in ("PENDING", "RUNNING", "COMPLETING"):
        line = options["format"]
        for field, name in (("%A", "id"), ("%T", "state"), ("%k", "comment"), ("%Z", "folder")):
            line = line.replace(field, job[name])
        print(line)
""",
    "scontrol": """\
if cluster["down"] or not cluster["configured"]:
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
match sys.argv[1:]:
    case ["show", "job", number, "--oneliner"] if number in cluster["shown_jobs"]:
        print(cluster["shown_jobs"][number])
    case ["show", "node", name, "--oneliner"] if name in cluster["shown_nodes"]:
        print(cluster["shown_nodes"][name])
    case ["show", "hostnames", nodes]:
        print(*next(job["nodes"] for job in cluster["jobs"] if job["nodelist"] == nodes), sep="\\n")
    case ["requeue", number] if cluster["requeues"]:
        pass
    case ["requeue", number]:
        sys.exit(f"Job has already finished for job {number}")
    case _:
        sys.exit("slurm_load_jobs error: Invalid job id specified")
""",
    # Starts the command once for each node of the job, and tells the highest status.
    "srun": """\
import signal, subprocess, time
import psutil

options, words = {}, sys.argv[1:]
while words[0].startswith("--"):
    name, _, value = words.pop(0)[2:].partition("=")
    options[name] = value
(nodes,) = (job["nodes"] for job in cluster["jobs"] if job["id"] == options["jobid"])
if not (options["nodes"] == options["ntasks"] == str(len(nodes)) and options["ntasks-per-node"] == "1"):
    sys.exit(f"srun: error: {options} for the nodes {nodes}")
if "SLURM_STEP_ID" in os.environ:
    sys.exit("srun: error: Unable to create step: Requested node configuration is not available")
tasks = []

def kill(*_):
    for task in tasks:
        if task.poll() is None:
            process = psutil.Process(task.pid)
            for member in [*process.children(recursive=True), process]:
                member.kill()

def tell_several_times(number, _):
    for _ in range(3):
        for task in tasks:
            task.send_signal(number)
        time.sleep(0.1)

signal.signal(signal.SIGUSR1, tell_several_times)
signal.signal(signal.SIGTERM, kill)
for number, node in enumerate(nodes):
    step = {"SLURMD_NODENAME": node, "SLURM_PROCID": str(number), "SLURM_STEP_ID": "1"}
    step |= cluster["variables"].get(node, {})
    tasks.append(subprocess.Popen(words, env=os.environ | step, stdin=subprocess.DEVNULL))
while any(task.poll() is None for task in tasks):
    if options.get("kill-on-bad-exit") == "1" and any(task.returncode for task in tasks):
        kill()
    time.sleep(0.05)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
""",
}


class FakeSlurm:
    """A cluster that is a file: ``folder`` goes first on the PATH of what is to use it.

    Attributes:
        configured: whether there is a cluster at all; Slurm's commands alone say otherwise.
        down: whether the controller answers nobody.
        requeues: whether jobs may go back into the queue.
        addresses: of the nodes.
        variables: what the processes that ``srun`` starts on a node find beside those of all nodes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configured, self.down, self.requeues = True, False, True
        self.addresses = {"n1": "10.0.0.1", "n2": "10.0.0.2"}
        self.variables: dict[str, dict[str, str]] = {}
        self._jobs: list[dict[str, Any]] = []
        folder.mkdir()
        for name, program in PROGRAMS.items():
            path = folder / name
            path.write_text(f"#!{sys.executable} -I\n{BOTH}{program}")
            path.chmod(0o755)
        self.save()

    @property
    def path(self) -> str:
        """The value of PATH with the stand-ins first."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def add(
        self,
        number: str,
        comment: str,
        folder: Path,
        *,
        state: str = "RUNNING",
        nodes: tuple[str, ...] = ("n1",),
        restarts: int = 0,
    ) -> None:
        """A job more."""
        nodelist = nodes[0] if len(nodes) == 1 else f"n[{'-'.join(node.removeprefix('n') for node in sorted(nodes))}]"
        job = {"id": number, "comment": comment, "folder": str(folder), "state": state, "restarts": restarts}
        log = f"{folder}/runs/logs/{comment}/{number}.log"
        self._jobs.append(job | {"nodes": nodes, "nodelist": nodelist, "log": log})
        self.save()

    def end(self, number: str) -> None:
        """A job comes to its end."""
        self._jobs = [job for job in self._jobs if job["id"] != number]
        self.save()

    def save(self) -> None:
        """Let the programs know of changed attributes."""
        state = {
            "jobs": self._jobs,
            "configured": self.configured,
            "down": self.down,
            "requeues": self.requeues,
            "variables": self.variables,
            "shown_jobs": {job["id"]: JOB.format(**job, count=len(job["nodes"])) for job in self._jobs},
            "shown_nodes": {node: NODE.format(node=node, address=name) for node, name in self.addresses.items()},
        }
        (self.folder / "cluster.json").write_text(json.dumps(state))

    def called(self, program: str) -> list[str]:
        """The arguments of each call of a program so far."""
        path = self.folder / "called.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")]
