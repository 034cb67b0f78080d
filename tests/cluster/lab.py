"""A real SLURM in a scratch folder: munged, slurmctld and a slurmd a node, as root, without systemd or cgroups.

`python tests/cluster/lab.py up FOLDER [NODES]` starts one and prints what to export; `… down FOLDER` ends it.

Facts about Debian's SLURM 22.05, measured: a gpu resource needs a character device a unit (links to /dev/null do);
slurmd loads a cgroup plugin whatever tracks processes, and finding one out fails in a container, so it is named;
several slurmds run on one host by `-N`, each with a port of its own, but jobs of two SLURMs with one number would meet
at one port, so each begins with another; limits of time are looked at every 30 s; a job that was requeued waits 120 s
unless its start is moved, once it is PENDING, and a start within a second of the last end fails ("credential revoked").
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
KILL_WAIT_SECONDS = 10  # between SLURM's SIGTERM and its SIGKILL
GRACE_SECONDS = 30  # that a preempted job has
START_SECONDS = 20
STOP_SECONDS = 10
CONF = """\
ClusterName=lab
SlurmctldHost={host}({control})
SlurmctldPort={port}
FirstJobId={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/pid/slurmctld
SlurmdPidFile={folder}/pid/slurmd.%n
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait={kill_wait}
UnkillableStepTimeout=300
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=01:00:00 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low Nodes=ALL MaxTime=INFINITE DefaultTime=01:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} \
State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs={cpus} Sockets=1 CoresPerSocket={cpus} "
    "ThreadsPerCore=1 RealMemory=8000 Gres=gpu:{gpus} State=UNKNOWN\n"
)


def why_not() -> str:
    """Say why no SLURM can be started here; empty when one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons want to be started by root"


class Lab:
    """A SLURM of its own: any number of them work side by side.

    Args:
        folder: Where all of it lives; its path must be short, for a socket is in it.
        nodes: Of one host, called node1, node2, …; no file of the machine is changed for them.
        cpus: Of a node, whatever the machine has.
        gpus: Of a node, and none of them is one.
        networks: Whether each node has a network namespace with an address of its own, 10.77.x.11 and on; else all
            of them are 127.0.0.1.
    """

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 2, gpus: int = 2, *, networks: bool = False) -> None:
        self.folder, self.nodes, self._shape = folder, [f"node{n + 1}" for n in range(nodes)], (cpus, gpus)
        self.conf = folder / "slurm.conf"
        self._networks = Networks(self.nodes, os.getpid()) if networks else None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need to find this one, without what an outer SLURM has set."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**clean, "SLURM_CONF": str(self.conf)}

    def start(self, *, guarded: bool = True) -> None:
        """Start all of it; what fails leaves nothing running, and nor does the death of this process if `guarded`."""
        with ExitStack() as undo:
            undo.callback(self.stop)
            if guarded:
                guard = [sys.executable, __file__, "guard", str(self.folder), str(os.getpid() if self._networks else 0)]
                self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
            if self._networks:
                self._networks.start()
            self._write()
            self._run("munged", f"--key-file={self.folder}/munge/key", f"--socket={self.folder}/munge/socket",
                      f"--pid-file={self.folder}/pid/munged", f"--log-file={self.folder}/log/munged",
                      f"--seed-file={self.folder}/munge/seed", "--num-threads=2")  # fmt: skip
            self._run("slurmctld", "-f", str(self.conf))
            for name in self.nodes:
                (self.folder / "spool" / name).mkdir()
                inside = self._networks.inside(name) if self._networks else []
                self._run(*inside, "slurmd", "-f", str(self.conf), "-N", name)
            if not wait_for(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), START_SECONDS):
                tails = [f"{log.name}: {log.read_text()[-500:]}" for log in self.logs()]
                raise RuntimeError("\n".join(["the nodes do not become idle", *tails]))
            undo.pop_all()

    def stop(self) -> None:
        """End every job and every daemon, by its process id."""
        with ExitStack() as last:
            if self._networks:
                last.callback(self._networks.stop)
            if self._pid("slurmctld"):
                subprocess.run(
                    ["scancel", "--full", "-u", "root"], env=self.environment, timeout=STOP_SECONDS, check=False
                )
                wait_for(lambda: not self.command("squeue", "-h"), KILL_WAIT_SECONDS + STOP_SECONDS)
            self._end([*(f"slurmd.{name}" for name in self.nodes), "slurmctld"])
            self._end(["munged"])
        if self._guard:
            self._guard.communicate()

    def command(self, *words: str) -> str:
        """Run a command of SLURM's and return what it printed; it must succeed."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Return each node's state, with `*` where it does not answer."""
        done = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N %t"], env=self.environment, timeout=10,
                              capture_output=True, text=True, check=False)  # fmt: skip
        return dict(line.split() for line in done.stdout.splitlines())

    def logs(self) -> list[Path]:
        return sorted((self.folder / "log").iterdir())

    def job(self, job: str) -> Mapping[str, str]:
        """Return what `scontrol show job` says of one job or array task."""
        words = self.command("scontrol", "-o", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str, seconds: float = 120) -> Mapping[str, str]:
        """Wait until a job is in one of some states; a requeued one is let in soon."""
        let_in = set()

        def arrived() -> bool:
            found = self.job(job)
            waits = found["JobState"] == "PENDING" and found["Reason"] == "BeginTime" and "PENDING" not in states
            if waits and found["Restarts"] not in let_in:
                let_in.add(found["Restarts"])
                self.command("scontrol", "update", f"JobId={job}", "StartTime=now+3")
            return found["JobState"] in states

        if not wait_for(arrived, seconds):
            raise RuntimeError(f"job {job} is not {' or '.join(states)} after {seconds} s: {self.job(job)}")
        return self.job(job)

    def end(self, job: str) -> None:
        """End a job, and wait until nothing is left of it: SLURM sets a node aside whose processes it cannot end."""
        subprocess.run(["scancel", "--full", job], env=self.environment, check=False, capture_output=True)
        wait_for(lambda: not self.command("squeue", "-h", "-j", job), 3 * KILL_WAIT_SECONDS)
        for name, state in self.states().items():
            if not state.startswith(("idle", "alloc", "mix", "comp")):
                self.command("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def pids(self, job: str, rank: int | None = None) -> list[int]:
        """List the processes of a job's tasks, or of one of them: what has SLURM's variables in its environment."""
        wanted = {f"SLURM_JOB_ID={self.job(job)['JobId']}", f"SLURM_CONF={self.conf}"}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                words = set(path.read_bytes().decode(errors="replace").split("\0"))
            except OSError:
                continue
            is_task = any(word.startswith("SLURM_STEP_NUM_TASKS=") for word in words)
            if wanted <= words and is_task and (rank is None or f"SLURM_PROCID={rank}" in words):
                found.append(int(path.parent.name))
        return sorted(found)

    def listening(self, job: str, ranks: int, seconds: float = 120) -> list[int]:
        """Wait until every rank of a job has a handler for SIGUSR1, and return their processes."""

        def hears(pid: int) -> bool:
            try:
                lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            except OSError:
                return False
            return bool(int(lines["SigCgt"], 16) >> (signal.SIGUSR1 - 1) & 1) and "python" in lines["Name"]

        if not wait_for(lambda: len([pid for pid in self.pids(job) if hears(pid)]) >= ranks, seconds):
            raise RuntimeError(f"no {ranks} ranks of job {job} listen after {seconds} s: {self.job(job)}")
        return [pid for pid in self.pids(job) if hears(pid)]

    def cut(self, job: str, how: Sequence[str] = (), seconds: float = 120) -> tuple[float, float]:
        """Send a job what SLURM sends before its end, and wait until it is back in the queue.

        Args:
            job: Which.
            how: The command, where it is not this signal.
            seconds: How long to wait for either.

        Returns:
            Seconds until SLURM was told to requeue it, and until its last process was gone.
        """
        lives, start = int(self.job(job)["Restarts"]), time.monotonic()
        self.command(*(how or ("scancel", "--signal=USR1", job)))
        if not wait_for(lambda: int(self.job(job)["Restarts"]) > lives, seconds):
            raise RuntimeError(f"job {job} is not requeued in {seconds} s: {self.job(job)}")
        requeued = time.monotonic() - start
        if not wait_for(lambda: not self.pids(job), seconds):
            raise RuntimeError(f"job {job} goes on after it was requeued")
        return requeued, time.monotonic() - start

    def _write(self) -> None:
        self.folder.chmod(0o755)  # munge asks for it
        for name in ("munge", "state", "spool", "pid", "log", "dev"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host, (cpus, gpus) = socket.gethostname().partition(".")[0], self._shape
        ports = free_ports(len(self.nodes) + 1)
        control = self._networks.control if self._networks else "127.0.0.1"
        names = {"folder": self.folder, "host": host, "kill_wait": KILL_WAIT_SECONDS, "grace": GRACE_SECONDS,
                 "control": control, "first": random.randrange(1, 1_000_000)}  # fmt: skip
        nodes = []
        for name, port in zip(self.nodes, ports[1:], strict=True):
            own = {"host": name, "address": self._networks.address(name)} if self._networks else {"address": control}
            nodes.append(NODE.format(**{"name": name, "host": host, **own}, port=port, cpus=cpus, gpus=gpus))
        general, partitions = CONF.format(port=ports[0], **names).split("PreemptType", 1)
        self.conf.write_text(f"{general}{''.join(nodes)}PreemptType{partitions}")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for number in range(gpus):
            (self.folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/dev/nvidia[0-{gpus - 1}]\n")

    def _run(self, *words: str) -> None:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stdout}{done.stderr}")

    def _pid(self, name: str) -> int | None:
        """Return the process id of a daemon that lives; it is no other process with a number that was used again."""
        try:  # a daemon that ends removes its file at any moment
            pid = int((self.folder / "pid" / name).read_text())
            command = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):
            return None
        return pid if command == name.partition(".")[0] else None

    def _end(self, names: Sequence[str]) -> None:
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            for name in names:
                if pid := self._pid(name):
                    os.kill(pid, number)
            wait_for(lambda: not any(map(self._pid, names)), seconds)


class Networks:
    """A network namespace a node, all on one bridge. They see one another and this machine, and nothing else."""

    def __init__(self, nodes: Sequence[str], number: int) -> None:
        self._nodes, number = list(nodes), number % 250 + 1
        self._bridge, self._net = f"lab{number}", f"10.77.{number}"
        self.control = f"{self._net}.1"

    def address(self, node: str) -> str:
        return f"{self._net}.{11 + self._nodes.index(node)}"

    def inside(self, node: str) -> list[str]:
        """Return what runs a command in a node. Not `ip netns exec`: that mounts /sys anew, without cgroups."""
        return ["nsenter", f"--net=/run/netns/{self._bridge}-{node}", "unshare", "-u", "sh", "-c",
                'hostname "$0" && exec "$@"', node]  # fmt: skip

    def start(self) -> None:
        self._ip(f"link add {self._bridge} type bridge", f"addr add {self.control}/24 dev {self._bridge}",
                 f"link set {self._bridge} up")  # fmt: skip
        for number, node in enumerate(self._nodes):
            space, plug = f"{self._bridge}-{node}", f"{self._bridge}v{number}"
            self._ip(f"netns add {space}", f"link add {plug} type veth peer name eth0 netns {space}",
                     f"link set {plug} master {self._bridge} up", f"-n {space} link set lo up",
                     f"-n {space} addr add {self.address(node)}/24 dev eth0",
                     f"-n {space} link set eth0 up")  # fmt: skip

    def stop(self) -> None:
        for line in (*(f"netns del {self._bridge}-{node}" for node in self._nodes), f"link del {self._bridge}"):
            subprocess.run(["ip", *line.split()], stderr=subprocess.DEVNULL, check=False)

    def _ip(self, *lines: str) -> None:
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True)


def wait_for(arrived: Callable[[], bool], seconds: float) -> bool:
    """Ask until it is so, or the time is over."""
    deadline = time.monotonic() + seconds
    while not arrived():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def free_ports(count: int) -> list[int]:
    """Ask the system for ports that nobody listens on."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def main() -> None:
    """Start or end a lab by hand, or wait until whoever started it is gone, and end it then."""
    verb, folder, *more = sys.argv[1:]
    lab = Lab(Path(folder).resolve(), *(map(int, more) if verb == "up" else ()))
    if verb == "up":
        if reason := why_not():
            sys.exit(reason)
        lab.folder.mkdir(parents=True)
        lab.start(guarded=False)
        sys.stdout.write(f"export SLURM_CONF={lab.conf}\n")
        return
    if verb == "guard":
        sys.stdin.read()  # ends with the other end of the pipe
    if (lab.folder / "spool").is_dir():
        lab.nodes = [path.name for path in (lab.folder / "spool").iterdir()]
        lab._networks = Networks(lab.nodes, int(more[0])) if verb == "guard" and more[0] != "0" else None
        lab.stop()


if __name__ == "__main__":
    main()
