"""`encdec <verb> [key=value …]`: dispatch, exit statuses, help, and the local multirun.

Progress and messages go to stderr, what a script reads to stdout or to files.
"""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from encdec_train import console, distributed
from encdec_train.config import TrainConfig
from encdec_train.errors import ConfigError, EncDecError, StoppedError, fault
from encdec_train.training import stop

HELP = """\
encdec <verb> [key=value ...]

  encdec train                      the demo: pretrain, warm-start, fine-tune, decode, score, export
  encdec train task=files task.train_file=... model=bert2bert model.encoder=...
  encdec doctor [train's overrides] what train would start with, examined by named checks
  encdec evaluate checkpoint=...    decode a split with a finished model and score it
  encdec score predictions=...      score a prediction file; prints JSON
  encdec compare a=... b=...        paired tests of two runs, and the examples that changed most; prints JSON
  encdec generate checkpoint=...    a line in, a line out (input=- output=-)
  encdec bundle [train's overrides] bundle.path=...
                                    collect what train would read; then bundle.path=... works without network
  encdec verify bundle.path=...     compare every file of a bundle with its SHA-256
  encdec report runs=[...]          one table of runs, with intervals over their seeds; prints JSON
  encdec submit [train's overrides] a SLURM job of it: cluster.nodes=2 cluster.gpus_per_node=4 cluster.time=60
  encdec info                       versions and devices

  A value with spaces or other characters is quoted for Hydra, and all of it for the shell:
    'task.train_file="my file.csv"'

  --cfg             print the composed config and stop
  --multirun, -m    train: run every combination of comma-separated values (seed=1,2,3), one after the other;
                    submit: as one array of jobs. The same command makes what is missing or has failed
  --config-dir DIR  search a folder of your own YAML too (DIR/task/mine.yaml is task=mine)
  --help, --version
"""
FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
CLUSTER = {"cluster", "submit"}  # keys that are no part of the job's own command
# Threads that wait spin for some microseconds, then sleep: on an idle machine sleeping at once costs a third of the
# speed, on a busy one spinning starves all (docs/results/training-speed.md). GNU's OpenMP goes by the number, others by
# the word.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
VERBS = (
    "train", "doctor", "evaluate", "score", "compare", "generate", "report", "submit", "bundle", "verify", "info",
)  # fmt: skip


class _Arguments:
    """The command line after the verb, split into flags and overrides."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.overrides: list[str] = []
        self.show_config = self.multirun = False
        self.config_dir: str | None = None
        rest = iter(arguments)
        for one in rest:
            if one in {"--cfg", "--multirun", "-m"}:
                self.show_config |= one == "--cfg"
                self.multirun |= one != "--cfg"
            elif one == "--config-dir":
                self.config_dir = next(rest, "")  # compose says what is wrong with nothing
            elif one.startswith("--config-dir="):
                self.config_dir = one.partition("=")[2]
            elif one.startswith("-"):
                raise ConfigError(fault("argument", "--cfg, --multirun, --config-dir DIR or key=value", one))
            else:
                self.overrides.append(one)
        self.flags = ["--config-dir", self.config_dir] if self.config_dir else []  # for the processes of single jobs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 2 the user's, 130 Ctrl-C, 143 SIGTERM, 1 anything else."""
    os.environ.update(WAITING if not WAITING.keys() & os.environ.keys() else {})
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        stop.listen_early()
    if not arguments or arguments[0] == "help" or {"--help", "-h"} & set(arguments):
        console.out(HELP.rstrip())
        return 0
    if arguments[0] == "--version":
        from encdec_train import __version__

        console.out(__version__)
        return 0
    try:
        return _dispatch(arguments[0], arguments[1:])
    except EncDecError as error:
        rank = distributed.rank()
        if not isinstance(error, StoppedError):  # that one is every rank's; others may be known to one rank alone
            console.silence(False)
        console.say(f"{f'rank {rank}: ' if rank else ''}encdec {arguments[0]}: {error}")
        as_asked = isinstance(error, StoppedError) and distributed.is_child()  # for Lightning, which kills rank 0 else
        return 0 if as_asked else error.exit_status
    except (OSError, RuntimeError, MemoryError) as error:
        if (trouble := _trouble(error)) is None:
            raise
        console.silence(False)
        console.say(f"encdec {arguments[0]}: {trouble} What was written before is still there.")
        return 1
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last checkpoint" if arguments[0] == "train" else ""
        console.say(f"stopped by Ctrl-C{goes_on}")
        return 130


def _trouble(error: Exception) -> str | None:
    """Phrase an error of the machine: its disk, rights, its memory; None for any other."""
    if isinstance(error, OSError):
        return f"{error}." if error.errno in FULL_OR_FORBIDDEN else None
    from encdec_train.training.memory import ran_out

    reason, remedy = str(error).partition("\n")[0], "Free memory, or lower data.max_micro_tokens; decoding keeps to it"
    return fault("memory", "room for what is computed", None, reason, remedy) if ran_out(error) else None


def _dispatch(verb: str, rest: Sequence[str]) -> int:
    if verb not in VERBS:
        from difflib import get_close_matches

        near = get_close_matches(verb, VERBS, n=1)
        remedy = f"Did you mean {near[0]}" if near else ""
        raise ConfigError(fault("verb", f"one of {', '.join(VERBS)}", verb, remedy=remedy))
    arguments = _Arguments(rest)
    if verb == "submit":
        return _submit(arguments)
    if arguments.multirun:
        if verb != "train":
            raise ConfigError(fault("--multirun", "encdec train or submit", verb))
        return _multirun(arguments)
    if verb == "info":
        return _info(arguments)
    with stop.held():  # imports swallow a signal, OmegaConf makes an error of it
        from encdec_train import compose
        from encdec_train.config import to_yaml

        config = compose.compose("train" if verb == "doctor" else verb, arguments.overrides, arguments.config_dir)
    if arguments.show_config:
        console.out(to_yaml(config).rstrip())
        return 0
    _run(verb, config)
    return 0


def _run(verb: str, config: Any) -> None:  # noqa: ANN401 - by verb
    """Do what a verb does; its code is imported here, so that no verb loads another one's libraries."""
    if verb == "train":
        with stop.held():
            from encdec_train.doctor import preflight
            from encdec_train.run import train

        train(config, preflight)
    elif verb == "doctor":
        from encdec_train.doctor import doctor

        doctor(config)
    elif verb == "generate":
        from encdec_train.api import generate_stream

        generate_stream(config)
    elif verb == "evaluate":
        from encdec_train.evaluation import evaluate

        evaluate(config)
    elif verb == "bundle":
        from encdec_train.session import make_bundle

        make_bundle(config)
    elif verb == "verify":
        from encdec_train.cluster.bundle import say_verified

        say_verified(config)
    elif verb == "compare":
        from encdec_train.comparison import compare

        console.out(json.dumps(compare(config), indent=1))
    elif verb == "report":
        from encdec_train.report.seeds import seeds

        console.out(json.dumps(seeds(config.runs, config.split), indent=1))
    else:
        from encdec_train.evaluation import score

        console.out(json.dumps(score(config), indent=1))


def _info(arguments: _Arguments) -> int:
    if arguments.overrides:
        raise ConfigError(fault("argument", "none", arguments.overrides[0]))
    from encdec_train.report.manifest import hardware, versions

    for section in (versions(), hardware()):
        for name, value in section.items():
            console.out(f"{name}: {value}")
    return 0


def _multirun(arguments: _Arguments) -> int:
    """Run every job in a process of its own; a finished one says so at once, so the same command is a restart."""
    from encdec_train.compose import sweep
    from encdec_train.config import to_yaml

    if (step := distributed.allocation()) is not None and (step.step_tasks or 1) > 1:
        reason, remedy = "each would make all runs", "Leave srun out, or type `encdec submit --multirun`"
        raise ConfigError(fault("--multirun", "one process", f"{step.step_tasks} tasks of srun", reason, remedy))
    jobs = sweep(arguments.overrides)
    configs = _configs("train", jobs, arguments)
    if arguments.show_config:
        console.out("---\n".join(to_yaml(config) for config in configs).rstrip())
        return 0
    failed = []
    for number, job in enumerate(jobs, start=1):
        console.say(f"\n[{number}/{len(jobs)}] encdec train {' '.join(job)}")
        command = [sys.executable, "-m", "encdec_train", "train", *arguments.flags, *job]
        status = _job(command)
        if status in {130, -signal.SIGINT}:
            raise KeyboardInterrupt
        if status in {143, -signal.SIGTERM}:
            return 143  # preempted: the jobs that are left are the next start's
        if status:
            failed.append(" ".join(job))
    console.say(f"\n{len(jobs) - len(failed)} of {len(jobs)} jobs are finished")
    for line in failed:
        console.say(f"failed: encdec train {line}")
    if not failed:
        _say_seeds(configs)
    return 1 if failed else 0


def _submit(arguments: _Arguments) -> int:
    """Submit a run, or a sweep of them as one array; what is finished or in the queue is left out."""
    from encdec_train.cluster.submit import Job, submit
    from encdec_train.compose import sweep
    from encdec_train.config import to_yaml
    from encdec_train.run import find_folder

    theirs = [one for one in arguments.overrides if one.lstrip("+~").partition("=")[0].split(".")[0] in CLUSTER]
    ours = [one for one in arguments.overrides if one not in theirs]
    jobs = sweep(ours) if arguments.multirun else [ours]
    configs = _configs("submit", [[*job, *theirs] for job in jobs], arguments)
    if arguments.show_config:
        console.out("---\n".join(to_yaml(config) for config in configs).rstrip())
        return 0
    found = [Job(job, find_folder(config)[0]) for job, config in zip(jobs, configs, strict=True)]
    submit(configs[0], found, arguments.flags, array=arguments.multirun)
    if arguments.multirun and all(job.folder.is_finished() for job in found):
        _say_seeds(configs)
    return 0


def _configs(verb: str, jobs: Sequence[Sequence[str]], arguments: _Arguments) -> list[Any]:
    """Compose every job, so that all faults come before the first one starts."""
    from encdec_train.compose import compose

    configs = [compose(verb, job, arguments.config_dir) for job in jobs]
    named = [config.run.name for config in configs if config.run.name is not None]
    if len(set(named)) < len(named):
        reason = "several jobs would share one folder"
        raise ConfigError(fault("run.name", "a name for each job, or none", named[0], reason, "Leave it out"))
    _check_distinct(configs)
    return configs


def _say_seeds(configs: Sequence[TrainConfig]) -> None:
    """Say the scores of a finished sweep, where every run of it has some."""
    from encdec_train.report.seeds import seeds
    from encdec_train.run import find_folder

    folders = [find_folder(config)[0] for config in configs]
    if all(folder.is_finished() and "test" in json.loads(folder.metrics.read_text("utf-8")) for folder in folders):
        seeds([str(folder.path) for folder in folders], "test")


def _job(command: Sequence[str]) -> int:
    """Run one job to its end. SIGTERM is passed on, Ctrl-C has reached it already; it needs time for a checkpoint."""
    with subprocess.Popen(command) as job:
        before = signal.signal(signal.SIGTERM, lambda number, _: job.send_signal(number))
        try:
            while True:
                try:
                    return job.wait()
                except KeyboardInterrupt:
                    continue
        finally:
            signal.signal(signal.SIGTERM, before)


def _check_distinct(configs: Sequence[TrainConfig]) -> None:
    """Refuse jobs that would be one run: swept are keys that are no part of a run's identity."""
    from encdec_train.fingerprint import json_sha256
    from encdec_train.folder import identify

    unnamed = [json_sha256(identify(config, {}, {})) for config in configs if config.run.name is None]
    if len(set(unnamed)) < len(unnamed):
        reason = "several jobs are the same run: decoding, metrics and how a run is executed do not make another one"
        remedy = "Sweep a key of the model, data, optimisation, steps or seed, or give each job a run.name"
        raise ConfigError(fault("--multirun", "jobs that differ in what they train", None, reason, remedy))
