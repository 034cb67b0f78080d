import pytest

from encdec_train.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    EncDecError,
    ModelError,
    fault,
)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("optim.lr", "a number", "fast"), "optim.lr: expected a number, got 'fast'."),
        (("seed", "0..9", 10), "seed: expected 0..9, got 10."),
        (("a.jsonl:3:source", "a text", None), "a.jsonl:3:source: expected a text."),
        (("x", "y", 1, "because of z"), "x: expected y, got 1; because of z."),
        (("x", "y", None, "", "Do this"), "x: expected y. Do this."),
        (("x", "y", 0, "because of z", "Do this"), "x: expected y, got 0; because of z. Do this."),
        (("x", "y", None, "a library's sentence. ", "Do this"), "x: expected y; a library's sentence. Do this."),
    ],
)
def test_a_fault_says_key_expected_received_reason_remedy(arguments: tuple[object, ...], text: str) -> None:
    assert fault(*arguments) == text


def test_a_config_error_collects_its_faults() -> None:
    assert ConfigError("one").faults == ["one"]
    error = ConfigError(("one", "two"))
    assert error.faults == ["one", "two"]
    assert str(error) == "one\ntwo"


@pytest.mark.parametrize(
    ("kind", "status"),
    [(EncDecError, 1), (ConfigError, 2), (DataError, 2), (ModelError, 2), (CheckpointError, 1), (ClusterError, 1)],
)
def test_the_exit_status_says_whose_it_is(kind: type[EncDecError], status: int) -> None:
    assert kind("what").exit_status == status
    with pytest.raises(EncDecError, match="what"):
        raise kind("what")
