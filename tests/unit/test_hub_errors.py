"""What a failed question to the Hub says."""

from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from encdec_train.hub_errors import HTTPError, reason_of

ANSWERED, WRAPPED = HTTPError("no"), OSError("somewhere")
vars(ANSWERED)["response"] = SimpleNamespace(status_code=503)
WRAPPED.__cause__ = HTTPError("refused.\nmore")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ANSWERED, "{} answers 503"),
        (WRAPPED, "{} cannot be reached or breaks off (HTTPError refused)"),
        (ValueError("odd"), "ValueError odd"),
    ],
)
def test_it_says_what_happened(error: Exception, said: str) -> None:
    assert reason_of(error) == said.format(constants.ENDPOINT)
