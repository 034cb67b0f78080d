import socket
import ssl
import threading
import urllib.error
import urllib.request

import pytest
import wandb_server

from encdec_train.tracking import wandb_setup

KEY = "a" * 40
PHRASES = {500: "Internal Server Error", 503: "Service Unavailable"}


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def served():
    with wandb_server.serve() as (state, _):
        yield state


def write_settings(folder, text):
    folder.mkdir(parents=True)
    (folder / "settings").write_text(f"[default]\n{text}\n", encoding="utf-8")


def test_a_bare_machine_is_not_configured(bare_machine):
    assert not wandb_setup.is_configured()


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"])
def test_a_variable_configures(bare_machine, monkeypatch, name):
    monkeypatch.setenv(name, "offline")
    assert wandb_setup.is_configured()


@pytest.mark.parametrize(("machine", "expected"), [("api.wandb.ai", True), ("github.com", False)])
def test_a_netrc_entry_of_the_host_configures(bare_machine, machine, expected):
    (bare_machine / ".netrc").write_text(f"machine {machine} login user password {KEY}\n", encoding="utf-8")
    assert wandb_setup.is_configured() is expected


def test_a_netrc_entry_counts_for_the_server_that_is_set(bare_machine, monkeypatch):
    (bare_machine / "keys").write_text(f"machine wandb.lab:8080 login user password {KEY}\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(bare_machine / "keys"))
    write_settings(bare_machine / ".config/wandb", "base_url = http://wandb.lab:8080")
    assert wandb_setup._has_key("http://wandb.lab:8080")
    assert not wandb_setup._has_key("http://other.lab:8080")


@pytest.mark.parametrize("place", [".config/wandb", "wandb"])
def test_a_settings_file_configures(bare_machine, place):
    write_settings(bare_machine / place, "mode = offline")
    assert wandb_setup.is_configured()
    assert wandb_setup.mode() == "offline"


def test_broken_files_count_as_absent(bare_machine):
    write_settings(bare_machine / ".config/wandb", "mode offline \x00 [")
    (bare_machine / ".netrc").write_text("machine\n", encoding="utf-8")
    assert not wandb_setup.is_configured()


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_disabled_is_not_configured(bare_machine, monkeypatch, name, value):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv(name, value)
    assert not wandb_setup.is_configured()


def test_the_reasons_to_stay_offline(bare_machine, monkeypatch, closed_port, served):
    default = served.url
    assert wandb_setup.why_offline(default) == "no key for 127.0.0.1: set WANDB_API_KEY or run `wandb login`"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_setup.why_offline(default) == ""
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    assert "127.0.0.1 cannot be reached: [Errno 111]" in wandb_setup.why_offline(default)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:99999")
    assert "127.0.0.1 cannot be reached: " in wandb_setup.why_offline(default)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_setup.why_offline(default) == "as WANDB_MODE or wandb's settings say"


def test_a_proxy_is_what_must_be_reached(bare_machine, monkeypatch, closed_port, served):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("http_proxy", served.url)
    assert wandb_setup.why_offline("http://nowhere.invalid") == ""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    assert "nowhere.invalid cannot be reached: [Errno 111]" in wandb_setup.why_offline("http://nowhere.invalid")


@pytest.mark.parametrize(("status", "counts"), [(401, True), (404, True), (500, False), (503, False)])
def test_a_refusal_is_an_answer_and_a_broken_server_is_none(bare_machine, served, status, counts):
    served.fails_with = status
    reason = wandb_setup.why_unreachable(served.url)
    assert reason == ("" if counts else f"127.0.0.1 cannot be reached: HTTP Error {status}: {PHRASES[status]}")


def test_asking_sends_no_key(bare_machine, monkeypatch, served):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_setup.why_offline(served.url) == ""
    assert (served.queries, served.authorizations) == (["anonymous"], {""})


def test_a_certificate_is_left_to_wandb(bare_machine, monkeypatch):
    def unknown(*_arguments, **_options):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", unknown)
    assert wandb_setup.why_unreachable("https://wandb.lab") == ""


def test_a_name_lookup_that_hangs_is_given_up(bare_machine, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    given_up = threading.Event()

    def hang(*_arguments, **_options):
        given_up.wait(60)
        raise OSError("given up")

    monkeypatch.setattr(socket, "create_connection", hang)
    reason = wandb_setup.why_offline("https://nowhere.invalid")
    assert reason == "nowhere.invalid cannot be reached: no answer within 2.5 s"
    given_up.set()
