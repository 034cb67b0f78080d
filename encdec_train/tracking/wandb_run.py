"""A W&B run: online when a key is there and its server answers, else offline at once.

Facts about wandb 0.31, measured: without a key it asks on a terminal; with a key and without network `init` takes 101 s
(5 s with `init_timeout=5`); when the server dies, `finish` never returns without `finish_timeout`; after a failed
`init` the run id stays taken until `teardown`; unless error reporting is off it sends its own telemetry to the server
and prints when that is refused. Nothing of the machine but its load is sent: no code, no git diff, no console, and no
command line, which could hold a key.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from encdec_train import console
from encdec_train.config import TrackingConfig
from encdec_train.redact import redact_text
from encdec_train.tracking import wandb_setup
from encdec_train.tracking.tracker import Guarded, Tracker, warn_failure

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline"]

INIT_TIMEOUT_SECONDS = 10
FINISH_TIMEOUT_SECONDS = 60

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
    failures = _failures()
    why_offline = wandb_setup.why_offline(wandb.Settings().base_url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run, mode = _open(settings, folder, run_id, config, why_offline)
    except failures as error:
        warn_failure("wandb", error)
        return Tracker()
    if mode == "online":
        console.say(f"wandb: {run.url}")
    sync = f"To upload it: wandb sync {shlex.quote(run.settings.sync_dir)}"
    return Guarded(WandbRun(run, sync if mode == "offline" else ""), "wandb", failures, sync)


class WandbRun(Tracker):
    """An open W&B run."""

    def __init__(self, run: "wandb.Run", last_words: str) -> None:
        self._run, self._last_words = run, last_words

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add to the history; values of one step are joined by wandb."""
        with _service():
            self._run.log(dict(values), step=step)

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Add a table."""
        import wandb

        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = wandb.Table(columns=[*columns], data=[[row.get(key, "") for key in columns] for row in rows])
        with _service():
            self._run.log({name: table}, step=step)

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        """Set the summary, wait a bounded time for uploads, and say how to upload what stayed here."""
        with _service():
            self._run.summary.update(dict(summary))
            self._run.finish(exit_code=int(failed))
        if self._last_words:
            console.say(f"wandb was offline. {self._last_words}")


@contextlib.contextmanager
def _service() -> Iterator[None]:
    """Where wandb's service process has died, forget it: wandb would print a traceback about it at exit."""
    try:
        yield
    except ConnectionError:
        _tear_down()
        raise


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
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
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
