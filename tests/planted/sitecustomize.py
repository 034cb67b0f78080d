"""Python imports this before all else where it lies on the path: a process of a run signals at one exact point.

`PLANTED` is JSON: the rank that does so, the module, what of it is called (empty: it is imported), the signal, and
whether the process group gets it, as from a terminal, or rank 0 alone, which leads it.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

RANK, MODULE, CALLED, NUMBER, GROUP = json.loads(os.environ["PLANTED"])


def tell() -> None:
    """Send the signal, once."""
    if "PLANTED" in os.environ:
        del os.environ["PLANTED"]
        (os.killpg if GROUP else os.kill)(os.getpgid(0), signal.Signals(NUMBER))


def plant(module: ModuleType) -> None:
    """Send it before the first call."""
    *owners, name = CALLED.split(".")
    owner: Any = module
    for one in owners:
        owner = getattr(owner, one)
    original = getattr(owner, name)

    @wraps(original)
    def planted(*arguments: Any, **named: Any) -> Any:
        tell()
        return original(*arguments, **named)

    setattr(owner, name, planted)


class Finder:
    """Finds the one module, and has it planted when it is loaded."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Leave all other modules to others."""
        if name != MODULE:
            return None
        if not CALLED:
            tell()
            return None
        found = PathFinder.find_spec(name, path, target)
        loader: Any = found and found.loader
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            plant(module)

        loader.exec_module = exec_module
        return found


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # the tests run in a shell's background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if int(os.environ.get("LOCAL_RANK", "0")) == RANK:
    sys.meta_path.insert(0, Finder)
