"""Keep keys and passwords out of everything that is written, shown or uploaded.

A value is hidden when its name says that it is a secret, when it looks like a known kind of key, or when it is
the value of a secret environment variable of this process.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence

HIDDEN = "***"

_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|authorization", re.IGNORECASE)
# Names that say "token" and mean text: counts (`max_source_tokens`, which may be `auto`), tokenizers, special tokens.
_TEXT_NAME = re.compile(
    r"tokeni[sz]|tokens_per|per_token|(?:max|min|num|batch|new|micro|source|target)\w*_tokens"
    r"|(?:bos|eos|pad|cls|sep|unk|mask|start|special)_tokens?",
    re.IGNORECASE,
)
# The look-behinds keep both searches linear in one long word.
_NAMED = re.compile(r"(?<![\w.\-])([\w.\-]+)['\"]?[ \t]*[=:][ \t]*")
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|(?:(?:bearer|basic)\s+)?[^\s,;&})\]'\"]+", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<![a-z0-9+.\-])([a-z0-9+.\-]+://)[^\s/?#]+@", re.IGNORECASE)
# Published prefixes of access keys: Hugging Face, OpenAI and its like, GitHub, W&B, Slack, AWS, JSON web tokens.
_KNOWN_KEY = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|wandb_v1_\w{16,}|xox[abprs]-[\w\-]{10,}|AKIA[A-Z0-9]{16}|eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]{8,})"
)
_PATH_OR_TEXT = re.compile(r"\s|^[/~.]")
_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/\-]{16,}=*", re.IGNORECASE)
_QUOTED_HIDDEN = re.compile(r"'([\w.+\-]*=?)\*\*\*'")
_LONG_ENOUGH = 16  # characters; a shorter environment value may be an ordinary word


def is_secret_name(name: str) -> bool:
    """Tell whether a key of a config or an environment variable names a secret."""
    return bool(_SECRET_NAME.search(_TEXT_NAME.sub("", name)))


def redact(value: object, name: str = "") -> object:
    """Copy nested mappings, lists and strings with every secret replaced by `***`.

    Args:
        value: Anything; what is not a mapping, a list, a tuple or a string is returned as it is.
        name: The key that `value` stands under; below a secret name every string is hidden, and numbers stay
            (`max_source_tokens: 512` is no secret, a password of digits is).
    """
    if isinstance(value, Mapping):
        return {key: redact(item, str(key) if not is_secret_name(name) else name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    if isinstance(value, str | bytes) and value and is_secret_name(name):
        return HIDDEN
    if isinstance(value, int) and not isinstance(value, bool) and "passw" in name.lower():
        return HIDDEN
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """Hide `name=value` of secret names, user and password in URLs, known kinds of keys, and this process's own."""
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    text = _hide_assigned(text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _KNOWN_KEY.sub(HIDDEN, text)


def redact_command_line(arguments: Sequence[str]) -> str:
    """Join arguments as one would type them, with the value of `name=secret` and `--name secret` hidden."""
    shown, hide_next = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            shown.append(HIDDEN)
        elif equals and value and is_secret_name(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(redact_text(argument))
        hide_next = argument.startswith("-") and not equals and is_secret_name(argument)
    return _QUOTED_HIDDEN.sub(rf"\1{HIDDEN}", shlex.join(shown))


def _environment_secrets() -> list[str]:
    values = {
        value
        for name, value in os.environ.items()
        if is_secret_name(name) and len(value) >= _LONG_ENOUGH and not _PATH_OR_TEXT.search(value)
    }
    return sorted(values, key=len, reverse=True)


def _hide_assigned(text: str) -> str:
    parts, done = [], 0
    for name in _NAMED.finditer(text):
        value = _VALUE.match(text, name.end()) if name.start() >= done and is_secret_name(name[1]) else None
        if value is None or re.fullmatch(r"[\d.,_]{1,12}", value[0]):  # a number is a count, not a secret
            continue
        quote = value[0][0] if value[0][0] in "'\"" else ""
        parts += [text[done : value.start()], quote, HIDDEN, quote]
        done = value.end()
    return "".join([*parts, text[done:]])
