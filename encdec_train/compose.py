"""From YAML and `key=value` overrides to a typed, checked config. The only importer of Hydra and OmegaConf.

Hydra composes values; dataclasses say what they are. Nothing in a config is ever called or imported (`_target_` is
refused), so a config file is data (docs/adr/0002).
"""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from encdec_train.check import check, check_ranges
from encdec_train.cluster import bundle
from encdec_train.config import (
    AnyConfig,
    CompareConfig,
    EvaluateConfig,
    GenerateConfig,
    ReportConfig,
    ScoreConfig,
    TaskConfig,
    TrainConfig,
    VerifyConfig,
)
from encdec_train.config_cluster import SubmitConfig
from encdec_train.errors import ConfigError, fault
from encdec_train.metrics import METRICS, expand
from encdec_train.tasks import TASKS
from encdec_train.tasks import faults as task_faults

CONFIGS: dict[str, type] = {
    "train": TrainConfig,
    "submit": SubmitConfig,
    "report": ReportConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "score": ScoreConfig,
    "compare": CompareConfig,
    "bundle": TrainConfig,
    "verify": VerifyConfig,
}
_DECODING = {"data": {"max_micro_tokens"}, "trainer": {"accelerator", "precision"}}
_TEXT = ("source_column", "max_source_tokens", "max_target_tokens")
READ: dict[str, dict[str, set[str]]] = {  # of a section that a verb shares with `train`, where it is not all of it
    "evaluate": {
        **_DECODING,
        "trainer": {*_DECODING["trainer"], "stall_seconds"},
        "run": {"name", "output_dir", "cache_dir"},
    },
    "generate": {**_DECODING, "task": {*_TEXT}},
    "score": {"run": {"cache_dir"}, "task": {f.name for f in fields(TaskConfig)} - {*_TEXT[1:], "overlong"}},
}
MANY = 40  # choices are listed
SUGGESTED = 4  # keys of a section, where no single one is near


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
        config_dir: A folder of the user's own YAML, searched besides ours.

    Returns:
        An instance of `CONFIGS[verb]`.

    Raises:
        ConfigError: With every fault found; nothing has been loaded.
    """
    raw = _compose_values(verb, overrides, config_dir)
    faults: list[str] = []
    config = _typed(CONFIGS[verb], raw, "", faults)
    faults += check_ranges(config)
    if verb == "bundle" and not faults and config.bundle.path is None:  # `???` in YAML does not undo train's null
        faults.append("bundle.path: expected a value, got none. Set bundle.path=….")
    if not faults:  # contradictions between values that are none would only repeat the faults above
        faults = check(config) + _check_names(config)
    if faults:
        raise ConfigError(faults)
    return config


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Expand comma-separated overrides (`seed=1,2,3`) into one list of overrides a job, in the order written.

    Raises:
        ConfigError: When an override cannot be read, or asks for a sweep without a list of values.
    """
    from hydra.errors import HydraException

    parsed = _parse(overrides)
    jobs: list[list[str]] = [[]]
    for one in parsed:
        choices = [str(one.input_line)]
        if one.is_sweep_override():
            try:
                choices = [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            except HydraException as error:
                raise ConfigError(fault(one.key_or_group, "values to choose from: 1,2,3 or range(1,4)",
                                        one.input_line)) from error  # fmt: skip
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
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed, faults = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            faults.append(_unreadable(text, str(error).splitlines()[0]))
    if faults:
        raise ConfigError(faults)
    return parsed


def _unreadable(text: str, reason: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return fault("argument", "key=value", text, remedy="Quote spaces: 'task.train_file=\"my file.csv\"'")
    remedy = f"Quote the value, and all of it for the shell: '{key}={quoted(value)}'"
    if value.startswith("~"):
        remedy = f"Write $HOME{value[1:]}: nothing expands the ~ here"
    return fault(key, "a value in Hydra's grammar", value, reason, remedy)


def quoted(value: str) -> str:
    """Write any text as a value of Hydra's grammar that means this text."""
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), value)
    return '"' + escaped.replace("${", "\\${") + '"'


def _compose_values(verb: str, overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """Let Hydra merge the YAML; every complaint of its becomes one of ours."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _check_config_dir(config_dir)
    _check_overrides(verb, _parse(overrides), config_dir)
    root, name = _beginning(verb, _parse(overrides))
    extra = [f"hydra.searchpath=[{quoted(f'file://{Path(config_dir).resolve()}')}]"] if config_dir else []
    try:
        with _callers_hydra_aside(), initialize_config_dir(str(root), version_base="1.3"):
            composed = hydra_compose(name, [*overrides, *extra])
        if caller := _resolver(OmegaConf.to_container(composed, resolve=False)):
            reason, remedy = "a config calls nothing, and what is in the environment stays there", "Write the value"
            raise ConfigError(fault(caller, "a value or ${another.key}", None, reason, remedy))
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()
        raise ConfigError(fault("config", "values that compose", None, reason)) from error
    if found := _target(values):
        raise ConfigError(fault(found, "values only", None, "a config never names code", "Remove it"))
    return typing.cast(dict[str, Any], values)


def _resolver(value: object, key: str = "") -> str:
    """Return the first key whose value calls a resolver, as `${oc.env:HOME}` does; not one for `${another.key}`."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return next(filter(None, (_resolver(item, f"{key}.{name}".lstrip(".")) for name, item in items)), "")
    text = str(value).replace("\\\\", "").replace("\\${", "")
    while (simpler := re.sub(r"\$\{[\w.\[\]]+\}", "", text)) != text:
        text = simpler
    return key if "${" in text else ""


def _beginning(verb: str, parsed: Sequence[Any]) -> tuple[Path, str]:
    """Return folder and name of the YAML to begin with: a bundle's own where nothing else is chosen."""
    given = {one.key_or_group: one for one in parsed}
    if issubclass(CONFIGS[verb], TrainConfig) and "bundle.path" in given and not {*given} & _groups([conf_dir()]):
        folder = Path(str(given["bundle.path"].value()))
        if (folder / bundle.MANIFEST).is_file() and (folder / bundle.CONFIG).is_file():
            return folder.resolve(), Path(bundle.CONFIG).stem
    return conf_dir(), verb


def _groups(roots: Sequence[Path]) -> set[str]:
    return {folder.name for root in roots for folder in root.iterdir() if folder.is_dir()}


def _choices(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*.yaml") if not file.name.startswith("_"))
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


@contextmanager
def _callers_hydra_aside() -> Iterator[None]:
    """Let a program that is itself a Hydra application call us: Hydra refuses to start while it runs."""
    from hydra.core.global_hydra import GlobalHydra

    callers, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = callers


def _check_config_dir(config_dir: str | None) -> None:
    """Refuse a folder that is not there, and files of it that Hydra would never look at."""
    if config_dir is None:
        return
    theirs, ours = Path(config_dir), conf_dir()
    if not config_dir or not theirs.is_dir():
        raise ConfigError(fault("--config-dir", "a folder of YAML files", config_dir))
    found = [*theirs.glob("*.yaml"), *theirs.glob("*/*.yaml")]  # and no deeper: it may be somebody's home
    names = sorted(path.relative_to(theirs).as_posix() for path in found)
    if theirs.resolve() != ours and (taken := [name for name in names if (ours / name).is_file()]):
        reason = f"{', '.join(taken)} would hide behind ours of the same name"
        raise ConfigError(fault("--config-dir", "files with names of their own", config_dir, reason, "Rename them"))


def _target(value: object, prefix: str = "") -> str | None:
    """Return the full name of the first `_target_`."""
    if not isinstance(value, Mapping | list):
        return None
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        name = f"{prefix}{key}"
        if found := name if key == "_target_" else _target(item, f"{name}."):
            return found
    return None


def _check_overrides(verb: str, parsed: Sequence[Any], config_dir: str | None) -> None:
    """Find unknown keys and choices before Hydra does, since it can only name the first and suggests nothing."""
    read = READ.get(verb, {})
    every = [(key, *key.partition(".")[::2]) for key in valid_keys(CONFIGS[verb])]
    keys = [key for key, section, name in every if not name or name in read.get(section, {name})]
    sections = {key.partition(".")[0] for key in keys if "." in key}
    sections |= {"experiment"} if issubclass(CONFIGS[verb], TrainConfig) else set()
    roots = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    groups, faults = _groups(roots), []
    for one in parsed:
        key, text = one.key_or_group, one.input_line
        if one.is_sweep_override():
            hint = (
                ("several values make several runs", "Add --multirun")
                if verb in {"train", "submit"}
                else ("", "Write [a,list]")
            )
            faults.append(fault(key, "one value", text, *hint))
        elif key == "experiment" and one.is_add() and key in sections:
            faults.append(fault(key, f"experiment={one.value()}", text, "it has its place among the defaults"))
        elif "_target_" in key.split("."):
            faults.append(fault(key, "values only", None, "a config never names code", "Remove it"))
        elif one.package is None and key in groups and not one.is_delete() and (one.is_add() or key in sections):
            choices = sorted({name for root in roots for name in _choices(root / key)})
            if one.value() not in choices:
                expected = f"one of {', '.join(choices[:MANY])}{', …' if len(choices) > MANY else ''}"
                faults.append(fault(key, expected, _shown(one.value()), remedy=_nearest(str(one.value()), choices)))
        elif one.package is not None or (key not in keys and not any(known.startswith(f"{key}.") for known in keys)):
            reason, remedy = f"{text!r} sets nothing", _nearest_key(key, keys)
            if key not in sections and any(f"{known}.".startswith(f"{key}.") for known in valid_keys(TrainConfig)):
                reason, remedy = f"`encdec {verb}` does not read it", "Leave it out"
            faults.append(fault(key or text, "a known key", None, reason, remedy))
    if faults:
        raise ConfigError(faults)


def _nearest(word: str, choices: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"Did you mean {found[0]}" if found else ""


def _nearest_key(word: str, keys: Sequence[str]) -> str:
    """Name the key that was meant: by its last part wherever it stands, then by spelling, else by its section."""
    section, _, last = word.rpartition(".")
    same = [key for key in keys if key.rpartition(".")[2] == last]
    names = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = (
        difflib.get_close_matches(word, same, n=1, cutoff=0)
        or difflib.get_close_matches(word, keys, n=1, cutoff=0.75)
        or [names[name] for name in difflib.get_close_matches(last, list(names), n=1, cutoff=0.7)]
    )
    if near:
        return f"Did you mean {near[0]}"
    siblings = [key.rpartition(".")[2] for key in keys if section and key.startswith(f"{section}.")]
    if siblings:
        more = ", …" if len(siblings) > SUGGESTED else ""
        return f"{section} has {', '.join(siblings[:SUGGESTED])}{more}; --cfg prints every key"
    return "--cfg prints every key"


def _typed(cls: type, values: Mapping[str, Any], prefix: str, faults: list[str]) -> Any:  # noqa: ANN401 - cls
    """Build a config class from plain values, leaf by leaf, collecting every fault."""
    hints = typing.get_type_hints(cls)
    keys = list(valid_keys(cls, prefix))
    faults += [
        fault(f"{prefix}{name}", "a known key", None, "nothing reads it", _nearest_key(f"{prefix}{name}", keys))
        for name in values
        if name not in hints
    ]
    built = {}
    for name, hint in hints.items():
        key, value = f"{prefix}{name}", values.get(name, "???")
        if is_dataclass(hint) and isinstance(value, Mapping):
            built[name] = _typed(typing.cast(type, hint), value, f"{key}.", faults)
        elif is_dataclass(hint):
            faults.append(fault(key, "a section of keys", "nothing" if value == "???" else _shown(value)))
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
    remedy = ""
    if str in options and isinstance(value, bool | int | float):
        remedy = f"Quote it to make it text: '{key}=\"{value}\"'"
    elif isinstance(value, str) and any(typing.get_origin(option) is list for option in options):
        remedy = f"Write {key}=[{value}]"
    faults.append(fault(key, " or ".join(_spelled(option) for option in options), _shown(value), remedy=remedy))
    return None


def _shown(value: object) -> object:
    return "null" if value is None else value


def _spelled(option: Any) -> str:  # noqa: ANN401 - a type hint
    if option is type(None):
        return "null"
    if isinstance(option, type) and issubclass(option, Enum):
        return f"one of {', '.join(str(member.value) for member in option)}"
    if typing.get_origin(option) is list:
        return f"a list, each {_spelled(typing.get_args(option)[0])}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[option]


def _check_names(config: AnyConfig) -> list[str]:
    """Check names that live in registries above `config`."""
    if isinstance(config, VerifyConfig | ReportConfig):
        return []
    task = config.task
    if task.name not in TASKS:
        return [fault("task.name", f"one of {', '.join(TASKS)}", task.name, "it says where the rows come from")]
    if found := task_faults(task):
        return found
    try:
        names = expand(task.metrics)
    except ConfigError as error:
        return error.faults
    best = config.trainer.best_metric if isinstance(config, TrainConfig) else "loss"
    if best != "loss" and best not in names:
        hint = f"Add {best} to task.metrics" if best in METRICS else _nearest(best, ["loss", *names])
        return [fault("trainer.best_metric", f"one of loss, {', '.join(names)}", best, remedy=hint)]
    return []
