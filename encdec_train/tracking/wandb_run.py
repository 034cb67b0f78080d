"""A W&B run: online when a key is there and its server answers, else offline at once.

Facts about wandb 0.31, measured: without a key it asks on a terminal; with a key and without network `init` takes 101 s
(5 s with `init_timeout=5`); when the server dies, `finish` does not return without `finish_timeout`, or at all;
an online table or artifact first asks the server and waits 19 s each time; after a failed `init` the run id stays taken
until `teardown`; a killed process leaves an offline file of 7 bytes, because up to 32 KiB are kept in memory; unless
error reporting is off it sends its own telemetry to the server and prints when that is refused. Of the machine its
name, its load and the program's path are sent: no code, no git diff, no console, and no command line.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from encdec_train import console
from encdec_train.config import TrackingConfig
from encdec_train.errors import DataError
from encdec_train.jsonl import read_rows
from encdec_train.redact import redact_text
from encdec_train.tracking import wandb_setup
from encdec_train.tracking.tracker import Guarded, Outcome, Tracker, warn_failure

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline"]

INIT_TIMEOUT_SECONDS = 10
FINISH_TIMEOUT_SECONDS = 60
GRACE_SECONDS = 5
MAX_ID = 120  # characters; W&B takes 128, also for the name of an artifact

is_configured = wandb_setup.is_configured


def start(settings: TrackingConfig, folder: Path, run_id: str, config: Mapping[str, object]) -> Tracker:
    """Open the run, or continue the one with this id; without key or network it is kept offline, to be synced later."""
    if wandb_setup.mode() == "disabled":
        return Tracker()
    # Its own crash reports would be sent over the network and could name values of this process; tables to be
    # uploaded would be staged below the home folder, which a compute node may not let us write.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_DATA_DIR", str((folder / "wandb").absolute()))
    try:
        import wandb
    except ImportError as error:
        warn_failure("wandb", error, "`pip install wandb` provides it.")
        return Tracker()
    failures, run_id = _failures(), run_id[-MAX_ID:]
    why_offline = wandb_setup.why_offline(wandb.Settings().base_url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _set_aside_earlier(folder / "wandb", run_id)
        run, mode = _open(settings, folder, run_id, config, why_offline)
    except failures as error:
        warn_failure("wandb", error)
        return Tracker()
    if mode == "online":
        console.say(f"wandb: {run.url}")
    sync = f"To upload it: wandb sync {shlex.quote(run.settings.sync_dir)}"
    tracked = WandbRun(run, folder / "metrics.jsonl", sync if mode == "offline" else "")
    return Guarded(tracked, "wandb", (*failures, DataError), sync)


class WandbRun(Tracker):
    """An open W&B run, which first takes from `metrics.jsonl` what an earlier start logged and W&B never got."""

    def __init__(self, run: "wandb.Run", curves: Path, last_words: str) -> None:
        self._run, self._curves, self._last_words = run, curves, last_words
        self._caught_up = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add to the history; values of one step are joined by wandb, those of a step that it has left are dropped."""
        with _service():
            self._catch_up(step)
            self._run.log(dict(values), step=step)

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Add a table."""
        import wandb

        if not self._has_answer(f"table {name} of step {step}"):
            return
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = wandb.Table(columns=[*columns], data=[[row.get(key, "") for key in columns] for row in rows])
        with _service():
            self._run.log({name: table}, step=step)

    def log_export(self, folder: Path, scores: Mapping[str, object]) -> None:
        """Add an artifact, which W&B takes for a new version where a file differs; files are read where they lie."""
        import wandb

        if self._has_answer("the export"):
            artifact = wandb.Artifact(f"{self._run.id}-export", type="model", metadata=dict(scores))
            artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
            with _service():
                self._run.log_artifact(artifact)

    def finish(self, summary: Mapping[str, float], outcome: Outcome) -> None:
        """Set the summary, wait a bounded time for uploads, and say how to upload what stayed here."""
        _bounded(lambda: self._finish(summary, outcome))
        if self._last_words:
            console.say(f"wandb was offline. {self._last_words}")

    def _finish(self, summary: Mapping[str, float], outcome: Outcome) -> None:
        with _service():
            self._catch_up(None)
            self._run.summary.update(dict(summary))
            if outcome is Outcome.stopped:
                self._run.mark_preempting()
            self._run.finish(exit_code=outcome.value)
        _tear_down()  # at exit its service may have been ended by SLURM, and wandb would print a traceback about it

    def _catch_up(self, before: int | None) -> None:
        """Log the rows of earlier starts, once, from the step that W&B expects next."""
        rows = [] if self._caught_up else list(read_rows(self._curves))
        self._caught_up = True
        for row in rows:
            step = row.pop("step")
            if step >= self._run.step and (before is None or step < before):
                self._run.log({name: value for name, value in row.items() if value is not None}, step=step)

    def _has_answer(self, what: str) -> bool:
        """Tell whether the server, where there is one, answers now; else say what W&B will lack."""
        reason = "" if self._last_words else wandb_setup.why_unreachable(self._run.settings.base_url)
        if reason:
            console.warn(f"wandb: {reason}; {what} is left out.")
        return not reason


def _set_aside_earlier(folder: Path, run_id: str) -> None:
    """Rename what earlier offline starts left: `wandb sync` would append it, with its steps counted on from the last.

    Nothing is lost but their tables: this start catches up with their curves.
    """
    for earlier in folder.glob(f"offline-run-*-{run_id}"):
        earlier.rename(earlier.with_name(f"earlier-{earlier.name}"))


@contextlib.contextmanager
def _service() -> Iterator[None]:
    """Where wandb's service process has died, forget it: wandb would print a traceback about it at exit."""
    try:
        yield
    except ConnectionError:
        _tear_down()
        raise


def _bounded(action: Callable[[], None]) -> None:
    """Act for at most `FINISH_TIMEOUT_SECONDS` and a little; then its service is ended, or the exit would hang too.

    Raises:
        TimeoutError: It took longer.
    """
    import wandb

    pool = ThreadPoolExecutor(1)
    done = pool.submit(action)
    try:
        done.result(FINISH_TIMEOUT_SECONDS + GRACE_SECONDS)
    except TimeoutError:
        if done.done():  # wandb kept its own time
            raise
        with contextlib.suppress(AttributeError):  # wandb has no public name for it
            wandb.setup()._connection._proc._process.terminate()  # type: ignore[union-attr]
        _tear_down()
        raise TimeoutError("Timed out finishing run.") from None
    finally:
        pool.shutdown(wait=False)


def _tear_down() -> None:
    import wandb

    with contextlib.suppress(*_failures(), SystemExit):  # it exits where its service has failed
        wandb.teardown()


def _open(
    settings: TrackingConfig, folder: Path, run_id: str, config: Mapping[str, object], why_offline: str
) -> "tuple[wandb.Run, Mode]":
    if not why_offline:
        try:
            return _init("online", settings, folder, run_id, config), "online"
        except _failures() as error:
            why_offline = redact_text(str(error).splitlines()[0]) if str(error) else type(error).__name__
            _tear_down()  # else the run id counts as in use
    console.say(f"wandb: offline ({why_offline}).")
    return _init("offline", settings, folder, run_id, config), "offline"


def _init(mode: Mode, settings: TrackingConfig, folder: Path, run_id: str, config: Mapping[str, object]) -> "wandb.Run":
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # `init` logs in through these global settings, and would print
    if mode == "online" and not wandb.login(prompt=False):  # `init` would ask on a terminal
        raise wandb.Error("wandb finds no key")
    return wandb.init(
        project=settings.project,
        group=settings.group,
        tags=settings.tags,
        id=run_id,
        name=run_id,
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=dict(config),
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            finish_timeout_raises=True,
            console="off",
            silent=True,
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_save_requirements=False,
        ),
    )


def _failures() -> tuple[type[Exception], ...]:
    """Name what wandb is known to raise; the mailbox's errors, seen when its service fails, have no common base."""
    import wandb
    from wandb.sdk import mailbox
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    service = (mailbox.MailboxClosedError, mailbox.HandleAbandonedError, ServerResponseError)
    return (wandb.Error, OSError, RuntimeError, ValueError, TypeError, *service)
