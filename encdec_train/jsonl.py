"""JSON Lines that this package wrote: an object a line, the last line perhaps half written by a killed process.

What users bring is read by `data/formats.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encdec_train.errors import DataError, fault


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file, none where there is no file; the end of a line that was never finished is left out.

    Raises:
        DataError: A whole line is no JSON object.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n") and line.strip():
                yield parse_object(line, f"{path}:{number}")


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DataError: It is none; the message begins with `where`.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(fault(where, "a JSON object", None, f"it is damaged: {error}")) from error
    if not isinstance(value, dict):
        raise DataError(fault(where, "a JSON object", value))
    return value
