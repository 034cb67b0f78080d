"""Whether W&B is wanted on this machine, and whether it can be reached, without importing or asking it."""

import configparser
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

PREFLIGHT_SECONDS = 2.5  # name lookup, connection and answer together
SILENT = f"no answer within {PREFLIGHT_SECONDS} s"
_DEFAULT_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # of wandb 0.31 and before


def is_configured() -> bool:
    """Tell whether this machine's user has set wandb up: a key, a mode, a netrc entry or a settings file."""
    settings = _settings()
    wanted = os.environ.get("WANDB_MODE") or settings or _has_key(settings.get("base_url"))
    return mode() != "disabled" and bool(wanted)


def mode() -> str:
    """Return `online`, `offline`, `disabled`, or an empty string: what the user has set for all runs."""
    if os.environ.get("WANDB_DISABLED", "").lower() in {"true", "1", "yes"}:
        return "disabled"
    name = os.environ.get("WANDB_MODE") or _settings().get("mode", "")
    return {"dryrun": "offline", "shared": "online"}.get(name, name)


def why_offline(default_url: str) -> str:
    """Say why a run has to stay offline; empty when it can go online.

    Args:
        default_url: The server that the installed wandb talks to when nothing is set.
    """
    url = os.environ.get("WANDB_BASE_URL") or _settings().get("base_url") or default_url
    if mode() == "offline":
        return "as WANDB_MODE or wandb's settings say"
    if not _has_key(url):
        return f"no key for {_host(url)}: set WANDB_API_KEY or run `wandb login`"
    return why_unreachable(url)


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _has_key(url: str | None) -> bool:
    names = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    return any(os.environ.get(name) for name in names) or "api_key" in _settings() or _netrc_has_key(url)


def _settings() -> dict[str, str]:
    """Read wandb's own settings files, the user's and the working folder's; a broken file counts as empty."""
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    merged: dict[str, str] = {}
    for path in (home, Path(os.environ.get("WANDB_DIR") or ".") / "wandb"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path.expanduser() / "settings", encoding="utf-8")
            merged |= dict(parser.items("default"))
        except (configparser.Error, OSError, UnicodeDecodeError, RuntimeError):  # RuntimeError: there is no home
            continue
    return merged


def _netrc_has_key(url: str | None) -> bool:
    hosts = [urlsplit(url).netloc] if url else list(_DEFAULT_HOSTS)
    if set(hosts) & set(_DEFAULT_HOSTS):
        hosts = list(_DEFAULT_HOSTS)
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]:
        try:
            entries = netrc.netrc(path.expanduser())
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError, RuntimeError):
            continue
        return any((entry := entries.authenticators(host)) is not None and entry[2] for host in hosts)
    return False


def why_unreachable(url: str) -> str:
    """Say why the server gives no answer, asked directly or through the proxy; empty when it gives one.

    In a thread of its own, because a name lookup has no timeout and may take 30 s where DNS is filtered.
    """
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(_why_no_answer(url)), daemon=True)
    thread.start()
    thread.join(PREFLIGHT_SECONDS)
    reason = answers[0] if answers else SILENT
    return f"{_host(url)} cannot be reached: {reason}" if reason else ""


def _why_no_answer(url: str) -> str:
    """Ask what every GraphQL server can answer; a refusal is an answer, a server's own failure is none."""
    question, kind = b'{"query": "{__typename}"}', {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/graphql", question, kind)  # noqa: S310 - the user's own
        with urllib.request.build_opener().open(request, timeout=PREFLIGHT_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return str(error) if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR else ""
    except (OSError, ValueError, OverflowError, HTTPException) as error:  # an address or port that cannot be one
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return SILENT
        return "" if isinstance(reason, ssl.SSLError) else str(reason)  # wandb has certificates of its own
