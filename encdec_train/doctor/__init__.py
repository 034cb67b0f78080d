"""The preflight: what `train` would start with is examined before a device is taken."""

import time
from collections.abc import Container
from typing import TYPE_CHECKING

from encdec_train import console
from encdec_train.config import TrainConfig
from encdec_train.errors import ModelError

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel

    from encdec_train.doctor.patient import Finding, Patient
    from encdec_train.session import Session

SLOW = {"overfit"}  # of the verb alone: it trains; the others take a second or two at base size
OF_PAIRS = {"start token", "sharing"}  # a model without an encoder has no such part
BLOCKING = {"positions", "vocabulary"}  # where they fail, a forward would only be an index error


def doctor(config: TrainConfig) -> None:
    """Print a table of the checks.

    Raises:
        EncDecError: When a check fails, or a run could not even be loaded.
    """
    from encdec_train.doctor.patient import Status, admit

    began = time.monotonic()
    patient = admit(config)
    admitted = time.monotonic()
    findings = examine(patient)
    rows = [[name, one.status.value, one.found, one.remedy] for name, one in findings.items()]
    console.out(console.table(rows, ["check", "", "found", "remedy"]))
    took = time.monotonic()
    console.say(f"{took - began:.0f} s, of which {took - admitted:.0f} s for the checks")
    if failed := [name for name, one in findings.items() if one.status is Status.fail]:
        raise ModelError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}.")


def preflight(config: TrainConfig, session: "Session", model: "EncoderDecoderModel") -> None:
    """Make the checks that need no training, on what a run is about to start with, and tell the result in a line.

    Raises:
        ModelError: With the first check that fails.
    """
    from encdec_train.doctor.patient import Status, patient_of

    began = time.monotonic()
    findings = examine(patient_of(config, session, model), leave_out=SLOW)
    lines = {name: f"{name}: {one.found}. {one.remedy}".rstrip(" .") for name, one in findings.items() if one.remedy}
    if failed := [lines[name] for name, one in findings.items() if one.status is Status.fail]:
        raise ModelError(f"{failed[0]}. `encdec doctor` with the same keys makes all checks.")
    warned = f", {len(lines)} with a warning," if lines else ""
    console.say(f"doctor: {len(findings)} checks passed{warned} in {time.monotonic() - began:.1f} s")
    for line in lines.values():
        console.say(f"doctor: {line}.")


def examine(patient: "Patient", leave_out: Container[str] = ()) -> "dict[str, Finding]":
    """Make every check but some; the overfit test only where no other fails."""
    from encdec_train.doctor.checks import CHECKS
    from encdec_train.doctor.patient import Finding, Status
    from encdec_train.modeling.families import is_causal

    absent = OF_PAIRS if is_causal(patient.model) else set()
    findings: dict[str, Finding] = {}
    for name, check in CHECKS.items():
        if name in leave_out:
            continue
        failed = {other for other, finding in findings.items() if finding.status is Status.fail}
        blocked = failed if name == "overfit" else failed & BLOCKING
        why = "there is no encoder" if name in absent else f"first: {', '.join(sorted(blocked))}"
        findings[name] = Finding(Status.not_run, why) if blocked or name in absent else check(patient)
    return findings
