import os

import pytest

from encdec_train.config import TrackerName, TrackingConfig


@pytest.fixture
def settings():
    """Give the settings of a run that names no entity."""
    return TrackingConfig(kind=TrackerName.auto, project="tests", group=None, tags=["unit"])


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """Give a home without any W&B settings, key or proxy."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home
