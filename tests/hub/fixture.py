"""The fixture `hub`: a loopback Hub that this process and its children take for the real one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub import data_sets
from hub.environment import point_to
from hub.server import Hub, serve

from encdec_train.tasks import TASKS


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve an empty Hub, with an empty cache, to `huggingface_hub`, transformers and child processes."""
    import transformers.utils.hub as transformers_hub
    from huggingface_hub import HfApi, constants, hf_api

    with serve() as found:
        point_to(found.endpoint, tmp_path / "hf", monkeypatch)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)
        monkeypatch.setattr(hf_api.api, "endpoint", found.endpoint)
        assert HfApi().endpoint == constants.ENDPOINT == found.endpoint
        yield found


@pytest.fixture
def served(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Serve the data sets of all tasks."""
    data_sets.add_all(hub, tmp_path / "served")
    monkeypatch.setitem(TASKS, "wikisplit", replace(TASKS["wikisplit"], base_url=f"{hub.endpoint}/files/"))
    return hub
