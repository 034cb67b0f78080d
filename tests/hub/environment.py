"""What the Hub's client reads when it is imported, changed for a process that runs."""

from pathlib import Path

import pytest


def point_to(endpoint: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process (which read its environment long ago) and its children use an endpoint and a cache."""
    from huggingface_hub import constants

    cache = home / "hub"
    for name, value in {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, found in {
        "ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_ASSETS_CACHE": str(home / "assets"), "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, found)
    home.mkdir(exist_ok=True)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do to this process what HF_HUB_OFFLINE=1 does to one that starts."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
