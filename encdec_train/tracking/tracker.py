"""What trackers can be told; `Tracker` itself tells nobody, and so does a `Guarded` one after it has failed."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path

from encdec_train import console
from encdec_train.redact import redact_text


class Outcome(Enum):
    """How a start of a run ends; the value is the exit code that a tracker is told."""

    finished = 0
    failed = 1
    stopped = 143  # asked to stop: the next start goes on


class Tracker:
    """What a run tells somebody else while it trains; whatever a tracker does not take goes nowhere."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values of one optimizer step; steps never go down within a process."""

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Show a small table of texts, such as predictions."""

    def log_export(self, folder: Path, scores: Mapping[str, object]) -> None:
        """Keep the exported model, with its scores by split and metric."""

    def finish(self, summary: Mapping[str, float], outcome: Outcome) -> None:
        """Show the final scores and let go of files and processes; nothing may be logged afterwards."""


class Guarded(Tracker):
    """Passes everything on until the tracker fails once; then warns and tells nobody for the rest of the run."""

    def __init__(self, inner: Tracker, name: str, failures: tuple[type[Exception], ...], remedy: str = "") -> None:
        """Guard `inner`.

        Args:
            inner: The tracker that may fail.
            name: What the warning calls it.
            failures: Everything that its library is known to raise; anything else is a defect of ours and is raised.
            remedy: What the warning advises, as a sentence.
        """
        self._inner, self._name, self._failures, self._remedy = inner, name, failures, remedy

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log, or stop tracking."""
        self._attempt(lambda: self._inner.log(step, values))

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Log, or stop tracking."""
        self._attempt(lambda: self._inner.log_examples(step, name, rows))

    def log_export(self, folder: Path, scores: Mapping[str, object]) -> None:
        """Keep it, or stop tracking."""
        self._attempt(lambda: self._inner.log_export(folder, scores))

    def finish(self, summary: Mapping[str, float], outcome: Outcome) -> None:
        """Finish, or stop tracking."""
        self._attempt(lambda: self._inner.finish(summary, outcome))
        self._inner = Tracker()

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except self._failures as error:
            self._inner = Tracker()
            warn_failure(self._name, error, self._remedy)


def warn_failure(name: str, error: Exception, remedy: str = "") -> None:
    """Say once that a tracker is given up, without keys that its message may hold."""
    text = redact_text(f"{type(error).__name__}: {error}".splitlines()[0])
    message = f"{name} tracking stops here ({text}); the run goes on, metrics.jsonl has everything. {remedy}"
    console.warn(message.rstrip())
