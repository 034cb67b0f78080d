"""From YAML and `key=value` overrides to a typed, checked config. The only importer of Hydra and OmegaConf.

Hydra composes values; dataclasses say what they are. Nothing in a config is ever called or imported (`_target_` is
refused), so a config file is data (docs/adr/0002).
"""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from encdec_train.check import check
from encdec_train.config import (
    AnyConfig,
    EvaluateConfig,
    GenerateConfig,
    ScoreConfig,
    TrainConfig,
)
from encdec_train.errors import ConfigError, fault
from encdec_train.metrics import METRICS, expand

CONFIGS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "score": ScoreConfig,
}
TARGET = re.compile(r"(?<![A-Za-z0-9])_target_(?![A-Za-z0-9])")  # and not `max_target_tokens`
QUOTING = "Quote values with spaces or other characters, inside quotes for the shell: 'task.train_file=\"my file.csv\"'"


def conf_dir() -> Path:
    """Return the folder of the shipped YAML: inside an installed wheel, or at the root of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def compose(verb: str, overrides: Sequence[str] = (), config_dir: str | None = None) -> Any:  # noqa: ANN401 - by verb
    """Compose, type and check the config of a verb.

    Args:
        verb: A key of `CONFIGS`.
        overrides: Hydra's `key=value` grammar.
        config_dir: A folder of the user's own YAML, searched before ours.

    Returns:
        An instance of `CONFIGS[verb]`.

    Raises:
        ConfigError: With every fault found; nothing has been loaded.
    """
    raw = _compose_values(verb, overrides, config_dir)
    faults: list[str] = []
    config = _typed(CONFIGS[verb], raw, "", faults)
    if not faults:
        faults = check(config) + _check_names(config)
    if faults:
        raise ConfigError(faults)
    return config


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Expand comma-separated overrides (`seed=1,2,3`) into one list of overrides a job, in the order written."""
    parsed = _parse(overrides)
    jobs: list[list[str]] = [[]]
    for one in parsed:
        choices = [str(one.input_line)]
        if one.is_sweep_override():
            choices = [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        jobs = [[*job, choice] for job in jobs for choice in choices]
    return jobs


def valid_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the full name of every leaf of a config class."""
    for name, hint in typing.get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from valid_keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _parse(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser = OverridesParser.create()
    parsed, faults = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            faults.append(fault("override", "key=value in Hydra's grammar", text, reason, QUOTING))
    if faults:
        raise ConfigError(faults)
    return parsed


def _compose_values(verb: str, overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """Let Hydra merge the YAML; every complaint of its becomes one of ours."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(fault("--config-dir", "a folder of YAML files", config_dir))
    _check_overrides(verb, _parse(overrides), config_dir)
    extra = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose(verb, [*overrides, *extra])
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        text = re.sub(r"\s+", " ", str(error)).strip()
        raise ConfigError(f"config: expected values that compose, got: {text}. {QUOTING}.") from error
    if _holds_target(values):
        raise ConfigError("_target_: expected values only; a config never names code. Remove it.")
    return typing.cast(dict[str, Any], values)


def _holds_target(value: object) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_holds_target(item) for item in value.values())
    return isinstance(value, list) and any(_holds_target(item) for item in value)


def _check_overrides(verb: str, parsed: Sequence[Any], config_dir: str | None) -> None:
    """Find unknown keys and choices before Hydra does, since it can only name the first and suggests nothing."""
    keys = list(valid_keys(CONFIGS[verb]))
    roots = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    groups = {folder.name for root in roots for folder in root.iterdir() if folder.is_dir()}
    faults = []
    for one in parsed:
        key, text = one.key_or_group, one.input_line
        if one.is_sweep_override():
            faults.append(fault(key, "one value", text, "several values make several runs", "Add --multirun"))
        elif TARGET.search(text):
            faults.append(fault(key, "a value", text, "a config never names code"))
        elif key in groups and isinstance(one.value(), str):
            choices = sorted({file.stem for root in roots for file in (root / key).glob("*.yaml")})
            if one.value() not in choices:
                expected = f"one of {', '.join(choices)}"
                faults.append(fault(key, expected, one.value(), remedy=_nearest(one.value(), choices)))
        elif key not in keys and not any(known.startswith(f"{key}.") for known in keys):
            faults.append(fault(key, "a known key", None, f"{text!r} sets nothing", _nearest(key, keys)))
    if faults:
        raise ConfigError(faults)


def _nearest(word: str, choices: Sequence[str]) -> str:
    last = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    by_last = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.7)
    nearest = found[0] if found else last[by_last[0]] if by_last else None
    return f"Did you mean {nearest}" if nearest else "`encdec train --cfg` prints every key"


def _typed(cls: type, values: Mapping[str, Any], prefix: str, faults: list[str]) -> Any:  # noqa: ANN401 - cls
    """Build a config class from plain values, leaf by leaf, collecting every fault."""
    hints = typing.get_type_hints(cls)
    keys = list(hints)
    faults += [
        fault(f"{prefix}{name}", "a known key", None, "nothing reads it", _nearest(str(name), keys))
        for name in values
        if name not in hints
    ]
    built = {}
    for name, hint in hints.items():
        key, value = f"{prefix}{name}", values.get(name, "???")
        if is_dataclass(hint):
            section = value if isinstance(value, Mapping) else {}
            if not isinstance(value, Mapping):
                faults.append(fault(key, "a section", value))
            built[name] = _typed(typing.cast(type, hint), section, f"{key}.", faults)
        elif value == "???":
            faults.append(f"{key}: expected a value, got none. Set {key}=….")
        else:
            built[name] = _leaf(hint, value, key, faults)
    return cls(**{name: built.get(name) for name in hints})


def _leaf(hint: Any, value: object, key: str, faults: list[str]) -> object:  # noqa: ANN401 - a type hint
    """Convert one value to its type, or add a fault. Only lossless conversions: 3 is a float, "3" is no int."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if option in {int, str, bool} and type(value) is option:
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and issubclass(option, Enum) and value in {member.value for member in option}:
            return option(value)
        if typing.get_origin(option) is list and isinstance(value, list):
            inner = typing.get_args(option)[0]
            return [_leaf(inner, item, f"{key}[{index}]", faults) for index, item in enumerate(value)]
    faults.append(fault(key, " or ".join(_spelled(option) for option in options), value))
    return None


def _spelled(option: Any) -> str:  # noqa: ANN401 - a type hint
    if option is type(None):
        return "null"
    if isinstance(option, type) and issubclass(option, Enum):
        return f"one of {', '.join(str(member.value) for member in option)}"
    if typing.get_origin(option) is list:
        return f"a list of {_spelled(typing.get_args(option)[0])}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[option]


def _check_names(config: AnyConfig) -> list[str]:
    """Check names that live in registries above `config`."""
    task = getattr(config, "task", None)
    if task is None:
        return []
    try:
        names = expand(task.metrics)
    except ConfigError as error:
        return error.faults
    best = config.trainer.best_metric if isinstance(config, TrainConfig) else "loss"
    if best != "loss" and best not in names:
        hint = "It must be one of task.metrics" if best in METRICS else _nearest(best, ["loss", *names])
        return [fault("trainer.best_metric", f"one of loss, {', '.join(names)}", best, remedy=hint)]
    return []
