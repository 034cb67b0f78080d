"""A forked process becomes the command, as a new one would: its own streams, its own end."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


def become_encdec(prepare: Callable[[], Sequence[str]]) -> NoReturn:
    """Be the process that runs `encdec` with the arguments that `prepare` returns; never comes back.

    Args:
        prepare: Puts what the process shall stand on into place: files 0 to 2, folder, environment. What it raises ends
            the process like an error of the command.
    """
    status = 1
    try:
        argv = prepare()
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "rw"[n > 0], encoding="utf-8") for n in range(3))
        sys.argv = ["encdec", *argv]
        from encdec_train.cli import main

        status = main(list(argv))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (printed as a process of its own would)
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
