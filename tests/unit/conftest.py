"""What tests of several packages share: checkpoints of any shape, pairs, and a model with its tokens."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Compute on one thread: sums come in one order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_conftest(request: pytest.FixtureRequest) -> ModuleType:
    """The conftest of all tests, whose plain functions cannot be imported from here."""
    plugins = request.config.pluginmanager.get_plugins()
    return next(plugin for plugin in plugins if hasattr(plugin, "write_pairs") and hasattr(plugin, "WORDS"))


@pytest.fixture
def new_bert(shared_conftest: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny BERT: `new_bert(name, seed, **changes of its shape)`."""

    def make(name: str, seed: int, **changes: Any) -> Path:
        return shared_conftest.make_bert(tmp_path / name, seed, **changes)

    return make


@pytest.fixture
def new_pairs(shared_conftest: ModuleType, tmp_path: Path) -> Callable[[str, range], Path]:
    """Write pairs: `new_pairs(file name, numbers of the pairs)`."""

    def write(name: str, numbers: range) -> Path:
        return shared_conftest.write_pairs(tmp_path / name, numbers)

    return write


@pytest.fixture(scope="session")
def tiny_source(tiny_bert: Path) -> Any:
    """The tiny BERT as far as its config and tokenizer."""
    from encdec_train.modeling.checkpoints import find

    return find("model.encoder", str(tiny_bert), None)


@pytest.fixture
def new_model(tiny_source: Any, one_thread: None) -> Callable[..., Any]:
    """Warm-start the tiny BERT on both sides: `new_model(share="none", init="both", seed=0, dropout=None)`."""
    from encdec_train.config import Init, Share
    from encdec_train.modeling.warm_start import Changes, build

    def make(share: str = "none", init: str = "both", seed: int = 0, dropout: float | None = None) -> Any:
        dropouts = (dropout, dropout)
        return build(tiny_source, tiny_source, Share(share), Init(init), seed=seed, changes=Changes(dropouts)).model

    return make


@pytest.fixture
def talkative(new_model: Callable[..., Any]) -> Any:
    """A model whose outputs differ in text and length: weights larger than BERT's, cross-attention above all."""
    import torch

    model = new_model(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.32 if "crossattention" in name else 0.08))
    return model.eval()
