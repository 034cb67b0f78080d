"""What a failed question to the Hub says, in a few words; for checkpoints and for data sets."""

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

ASK_SECONDS = 5.0  # for the one question, which is not repeated; the library's own way takes 23 s to say "unreachable"
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]  # httpx's or httpx2's: what a broken connection raises
FAILURES = (HTTPError, OSError, ValueError)


def reason_of(error: BaseException) -> str:
    """Say whether the Hub answered, was not reached, or broke off."""
    if (response := getattr(error, "response", None)) is not None:
        return f"{constants.ENDPOINT} answers {response.status_code}"
    cause = error.__cause__ if isinstance(error.__cause__, HTTPError) else error
    said = " ".join([type(cause).__name__, *str(cause).strip().splitlines()[:1]]).rstrip(".")
    return f"{constants.ENDPOINT} cannot be reached or breaks off ({said})" if isinstance(cause, HTTPError) else said
