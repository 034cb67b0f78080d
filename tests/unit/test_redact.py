import time

import pytest

from encdec_train.redact import HIDDEN, is_secret_name, redact, redact_command_line, redact_text

KEY = "0123456789abcdef0123456789abcdef01234567"  # the shape of a W&B key, and of a commit hash


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "WANDB_API_KEY",
        "hf_token",
        "token",
        "access_tokens",
        "db.password",
        "client_secret",
        "passwd",
        "apiKey",
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "task.max_source_tokens",
        "data.max_micro_tokens",
        "decoding.max_new_tokens",
        "time/tokens_per_second",
        "tokenizer",
        "decoder_tokenizer",
        "tokenization",
        "pad_token",
        "additional_special_tokens",
        "model.encoder",
        "trainer.keep_last",
    ],
)
def test_names_that_are_not_secrets(name):
    assert not is_secret_name(name)


def test_nested_values_are_hidden_by_the_name_above_them():
    config = {
        "data": {"max_micro_tokens": "auto", "batch_target_tokens": 4096},
        "wandb": {"api_key": KEY, "secrets": {"first": "a", "list": ["b", "c"]}, "no_key": "", "null_key": None},
        "login": {"password": 1234, "use_password": True},
        "revision": KEY,
        "tags": ("a", "hf_abcdefghijklmnopqrstuvwxyz"),
    }
    assert redact(config) == {
        "data": {"max_micro_tokens": "auto", "batch_target_tokens": 4096},
        "wandb": {
            "api_key": HIDDEN,
            "secrets": {"first": HIDDEN, "list": [HIDDEN, HIDDEN]},
            "no_key": "",
            "null_key": None,
        },
        "login": {"password": HIDDEN, "use_password": True},
        "revision": KEY,
        "tags": ["a", HIDDEN],
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pa@ss@host.org/x?a=1", "https://***@host.org/x?a=1"),
        ("http://proxy:3128 and a@b.org", "http://proxy:3128 and a@b.org"),
        ("GET /x?token=abcdef&page=2", "GET /x?token=***&page=2"),
        (f"key={KEY} commit {KEY}", f"key=*** commit {KEY}"),
        ('{"api_key": "abc def", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("hub:\n  api_key: abc\n  token: 'd e'\nseed: 1", "hub:\n  api_key: ***\n  token: '***'\nseed: 1"),
        ("error: api_key: abc, key=token=x", "error: api_key: ***, key=***"),
        ("sent bearer abcdefghijklmnop1234", "sent bearer ***"),
        (
            "task.max_source_tokens=64 data.max_micro_tokens=auto",
            "task.max_source_tokens=64 data.max_micro_tokens=auto",
        ),
        ("tokens: 1,834", "tokens: 1,834"),
        ("sk-abcdefghijklmnopqrst ghp_abcdefghijklmnopqrst AKIAABCDEFGHIJKLMNOP", "*** *** ***"),
        ("risk-abcdefghijklmnopqrst", "risk-abcdefghijklmnopqrst"),
    ],
)
def test_text(text, shown):
    assert redact_text(text) == shown


def test_a_key_of_the_environment_is_hidden_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("SSH_KEY_FILE", "/home/somebody/.ssh/id_rsa")
    monkeypatch.setenv("SHORT_KEY", "abc")
    shown = redact_text("xcorrect-horse-batteryx abc /home/somebody/.ssh/id_rsa")
    assert shown == "x***x abc /home/somebody/.ssh/id_rsa"


def test_command_line():
    arguments = ["encdec", "train", "x.api_key=a b", "+hf_token=q", "--password", "p w", "--verbose", "run.name=a b"]
    shown = redact_command_line(arguments)
    assert shown == "encdec train x.api_key=*** +hf_token=*** --password *** --verbose 'run.name=a b'"


def test_one_long_word_takes_linear_time():
    started = time.monotonic()
    assert redact_text("a" * 1_000_000) == "a" * 1_000_000
    assert time.monotonic() - started < 2
