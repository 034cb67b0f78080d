"""What can go wrong, by whose hand, and with which exit status.

Every message names the key, what was expected, what was received, why, and what to do about it.
"""

from collections.abc import Sequence
from signal import Signals


def fault(key: str, expected: str, received: object, reason: str = "", remedy: str = "") -> str:
    """Phrase one fault the way every message of this package is phrased.

    Args:
        key: The full name of the config key, or `file:row:field` for data.
        expected: What would have been accepted, as a range or a list of choices.
        received: The value that was given; strings are shown with quotes.
        reason: Why it cannot be accepted, without a final full stop.
        remedy: The next thing to do, as a sentence without a final full stop.
    """
    text = f"{key}: expected {expected}, got {received!r}" if received is not None else f"{key}: expected {expected}"
    if reason:
        text += f"; {reason.rstrip('. ')}"  # another library's message may end in one
    return f"{text}. {remedy}." if remedy else f"{text}."


class EncDecError(Exception):
    """Anything this package refuses to do or could not do.

    Attributes:
        exit_status: What the command line exits with (the contract: 2 is the user's, 1 is anything else).
    """

    exit_status = 1


class ConfigError(EncDecError):
    """The configuration cannot be run. All of its faults are collected and raised once.

    Attributes:
        faults: One message a fault, in the order of the config.
    """

    exit_status = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class DataError(EncDecError):
    """A file, row or field that cannot be used; the message names all three."""

    exit_status = 2


class ModelError(EncDecError):
    """A checkpoint, tokenizer or architecture that cannot be used."""

    exit_status = 2


class CheckpointError(EncDecError):
    """A training checkpoint that cannot be written, or is damaged."""


class ClusterError(EncDecError):
    """The processes of a run cannot find or hear one another."""


class StoppedError(EncDecError):
    """A run that was asked to stop. Within training every rank has left the same step, which is saved.

    Attributes:
        exit_status: 128 + the signal's number, 130 for Ctrl-C; 143, as for SIGTERM, also for SIGUSR1.
        step: None outside training, where nothing is saved that was not before.
    """

    def __init__(self, why: Signals, step: int | None = None) -> None:
        self.exit_status = 128 + (Signals.SIGTERM if why is Signals.SIGUSR1 else why)
        self.step = step
        place = "" if step is None else f" after step {step}"
        there = "the last checkpoint" if step is None else "there"
        super().__init__(f"stopped{place} by {why.name}; the same command goes on from {there}.")
