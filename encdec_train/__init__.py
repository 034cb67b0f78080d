"""encdec-train: fine-tune encoder-decoder models that are warm-started from pretrained checkpoints.

The functions below are the verbs of the command line, importable. Nothing heavy is imported before one is used.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encdec_train.api import (
        bundle,
        compare,
        evaluate,
        generate,
        load,
        pipeline,
        score,
        train,
        verify,
        warm_start,
    )

__version__ = "0.1.0"
__all__: Sequence[str] = (
    "bundle",
    "compare",
    "evaluate",
    "generate",
    "load",
    "pipeline",
    "score",
    "train",
    "verify",
    "warm_start",
)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of several functions
    if name in __all__:
        return getattr(import_module("encdec_train.api"), name)
    raise AttributeError(f"module 'encdec_train' has no attribute {name!r}")
