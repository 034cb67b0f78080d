"""The run folder: a run's identity, its name, its lock, and whether it is finished.

A command is idempotent: the same identity under a name continues the run or says that it is finished; another identity
under an existing name is refused with the difference shown. Reads no tensor, so it answers before torch is imported.
"""

import fcntl
import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from encdec_train.atomic import write_json
from encdec_train.config import TrainConfig, to_dict
from encdec_train.errors import ConfigError, fault
from encdec_train.fingerprint import json_sha256
from encdec_train.redact import redact

EXECUTION = {"num_workers", "max_micro_tokens"}  # of the data section: how a step is computed, not what it is
STEP_KEYS = ("max_steps", "max_epochs", "precision")  # of the trainer section; the others are execution
JOB_FOLDER = "slurm"  # in a run's folder: the job's script and logs, which are there before the run
FILE_KEYS = ("train_file", "validation_file", "test_file")  # stand in the identity by content


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; see the table in the README."""

    path: Path  # `<run.output_dir>/<run.name>`
    identity: Mapping[str, Any]  # what the run is, as plain values

    @property
    def metrics(self) -> Path:
        """`metrics.json`, the scores."""
        return self.path / "metrics.json"

    @property
    def export(self) -> Path:
        """The vanilla Hugging Face folder."""
        return self.path / "export"

    @property
    def run_id(self) -> str:
        """The tracker's id of this run: the same at every start of it, another for another identity."""
        return f"{self.path.name}-{json_sha256(self.identity)[:8]}"

    def manifest(self) -> dict[str, Any]:
        """Read `manifest.json`; empty before there is one.

        Raises:
            ConfigError: When it is damaged.
        """
        file = self.path / "manifest.json"
        if not file.is_file():
            return {}
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            remedy = "Move the folder away, or choose another run.name"
            raise ConfigError(fault(str(file), "what an earlier start wrote", None, str(error), remedy)) from error
        return values if isinstance(values, dict) else {}

    def note(self, **values: object) -> None:
        """Add to `manifest.json`, where there is one."""
        if manifest := self.manifest():
            write_json(self.path / "manifest.json", {**manifest, **values})

    def is_finished(self) -> bool:
        """Tell whether the run has nothing left to do."""
        return bool(self.manifest().get("finished")) and self.metrics.is_file()

    def last_step(self) -> int:
        """Return the step of the newest checkpoint, 0 before there is one."""
        found = (path.name.rpartition("_")[2] for path in self.path.glob("checkpoints/step_*"))
        return max((int(name) for name in found if name.isdigit()), default=0)

    def finished_message(self, config: TrainConfig) -> str:
        """Say that there is nothing to do, and what the scores were made with where it is asked otherwise now."""
        import yaml

        text = f"{self.path} is finished; nothing to do. Another seed or run.name makes another run."
        file = self.path / "config.yaml"
        made: dict[str, Any] = (yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None) or {}
        found = difference(_result_keys(made), _result_keys(to_dict(config)))
        lines = [f"\n  {key}: {old!r} there, {new!r} asked for" for key, old, new in found]
        if not lines:
            return text
        advice = f"`encdec evaluate checkpoint={self.path}` scores it anew."
        return f"{text} Its scores were made with{''.join(lines)}\n{advice}"

    def check_identity(self) -> None:
        """Refuse the folder when it belongs to another run, or when what is written there would land elsewhere.

        Raises:
            ConfigError: With every key that differs, or the link.
        """
        refuse_links(self.path)
        theirs = self.manifest().get("identity")
        if theirs is None:
            strangers = sorted(path.name for path in self.path.glob("[!.]*") if path.name not in {JOB_FOLDER, "errors"})
            if strangers:
                expected = "a new name, or the folder of an earlier run"
                reason = f"{self.path} holds {', '.join(strangers[:4])}, and no training run made it"
                remedy = "Choose another run.name, or move the folder away"
                raise ConfigError(fault("run.name", expected, self.path.name, reason, remedy))
            return
        if theirs != self.identity:
            lines = [f"  {key}: {old!r} there, {new!r} here" for key, old, new in difference(theirs, self.identity)]
            raise ConfigError(
                f"run.name: {self.path.name} is another run; nothing was changed. It differs in\n"
                + "\n".join(lines)
                + "\nChoose another run.name, or leave it out."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder while the process lives; the system lets go of it when the process dies.

        A folder in which nothing was written is gone again afterwards.

        Raises:
            ConfigError: When another process holds it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
            file = os.fdopen(lock, "a+", encoding="utf-8")
        except OSError as error:
            where = str(self.path.parent)
            raise ConfigError(fault("run.output_dir", "a folder that can be written", where, str(error))) from error
        here = weakref.ref(file)
        os.register_at_fork(after_in_child=lambda: _close(here()))  # or a loader's worker would hold on to it
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                reason = f"{file.read().strip() or 'another process'} is at it"
                expected = "a run that nobody else is making"
                raise ConfigError(fault("run.name", expected, self.path.name, reason)) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            try:
                yield
            finally:
                self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        with suppress(OSError):
            if {path.name for path in self.path.iterdir()} <= {".lock", ".ranks"}:
                shutil.rmtree(self.path / ".ranks", ignore_errors=True)
                (self.path / ".lock").unlink()
                self.path.rmdir()


def refuse_links(folder: Path) -> None:
    """Refuse a folder that is a link, or in which one leads out of it; W&B's own are W&B's.

    Raises:
        ConfigError: Naming the link.
    """
    inside, reason = os.path.realpath(folder), "what is written would land elsewhere"
    if folder.is_symlink():
        raise ConfigError(fault("run.name", "a folder and no link to one", str(folder), reason))
    for path in folder.rglob("*"):
        if path.is_symlink() and path.relative_to(folder).parts[0] != "wandb":
            target = os.path.realpath(path)
            if not Path(target).is_relative_to(inside):
                where = f"{path}, a link to {target}"
                raise ConfigError(fault("run.name", "a folder without links out of it", where, reason, "Remove it"))


def _close(file: IO[str] | None) -> None:
    if file is not None:
        file.close()


def identify(config: TrainConfig, data: Mapping[str, str], checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """Say what a run is: task, data content, model, batch, optimisation, precision, steps and seed.

    Args:
        config: Everything; what is execution (devices, intervals, tracking, …) is left out here.
        data: A fingerprint of each split's rows.
        checkpoints: A fingerprint of each half's checkpoint.
    """
    plain = to_dict(config)
    task = {key: value for key, value in plain["task"].items() if key not in FILE_KEYS and key != "metrics"}
    return {
        "task": task,
        "data": dict(data),
        "model": {**plain["model"], **checkpoints},
        "batch": {key: value for key, value in plain["data"].items() if key not in EXECUTION},
        "optim": plain["optim"],
        "steps": {key: plain["trainer"][key] for key in STEP_KEYS},
        "seed": plain["seed"],
    }


def open_folder(config: TrainConfig, identity: Mapping[str, Any]) -> RunFolder:
    """Name the run's folder, from its identity where the user gave no name; nothing is created.

    Raises:
        ConfigError: When a value is a key or a password: the config is written down, uploaded and shared.
    """
    plain = to_dict(config)
    if shown := difference(plain, cast("dict[str, Any]", redact(plain))):
        expected, remedy = "no key, token or password in a config", "Set it in the environment"
        raise ConfigError(
            [fault(key, expected, None, "the config is written and uploaded", remedy) for key, *_ in shown]
        )
    name = config.run.name or f"{config.task.name}-{config.model.name}-{json_sha256(identity)[:6]}"
    return RunFolder(Path(config.run.output_dir) / name, identity)


def _result_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Pick what is no part of the identity and yet decides the scores."""
    return {
        "decoding": values.get("decoding", {}),
        "task": {"metrics": values.get("task", {}).get("metrics")},
        "run": {"baselines": values.get("run", {}).get("baselines")},
        "trainer": {key: values.get("trainer", {}).get(key) for key in ("best_metric", "patience_validations")},
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List the leaves in which two identities differ, as (key, old, new)."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(old.keys() | new.keys()):
        mine, theirs = new.get(key), old.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += difference(theirs, mine, f"{prefix}{key}.")
        elif mine != theirs:
            found.append((f"{prefix}{key}", theirs, mine))
    return found
