"""The bundle: a folder with all that a run reads, for machines without network. It appears whole and is checked on use.

    models/<half>[@<commit>]/   config, weights and tokenizers of a checkpoint
    data/<split>.parquet        the rows as the task gave them: ids, sources, targets, references
    config.yaml                 the run's configuration: where an `encdec train bundle.path=…` begins
    BUNDLE.json                 sizes and SHA-256 of all these, and the fingerprints that make the run's identity

Nothing in it is found by an absolute path, so it can be copied anywhere.
"""

import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encdec_train import atomic, console
from encdec_train.config import (
    AnyConfig,
    BundleConfig,
    EvaluateConfig,
    ModelConfig,
    ReportConfig,
    ScoreConfig,
    TaskConfig,
    TrainConfig,
    VerifyConfig,
    to_dict,
    to_yaml,
)
from encdec_train.data.load import Rows
from encdec_train.data.sources import SplitSource, limit_of
from encdec_train.errors import ConfigError, fault
from encdec_train.fingerprint import checkpoint_files, file_sha256, json_sha256
from encdec_train.tracking import wandb_setup

if TYPE_CHECKING:
    from encdec_train.modeling.checkpoints import Source

MANIFEST, CONFIG = "BUNDLE.json", "config.yaml"
HALVES = ("encoder", "decoder")
LIMITS = {"num_train_examples", "num_validation_examples", "num_test_examples"}  # of the task: fewer may be asked for
SAME_ROWS = {"metrics", "max_source_tokens", "max_target_tokens", "overlong"}  # of the task: they change no row
WHOLE = "a bundle as `encdec bundle` wrote it"
_GROUP_ROWS = 10_000
NUM_SHOWN = 8  # damaged files that are named


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those of its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    def splits(self, task: TaskConfig) -> dict[str, SplitSource]:
        """Return the rows by split, with the fingerprints that they had where they came from."""
        return {
            name: SplitSource(
                said["fingerprint"],
                partial(_read_rows, self.path / _file_of(name), _limit(task, name)),
                said["origin"],
            )
            for name, said in self.manifest["splits"].items()
        }

    def source(self, name: str, revision: str | None = None) -> tuple[str, str | None]:
        """Return the folder of a checkpoint that a config names; what the bundle lacks stays as it is named."""
        for one in self.manifest["models"]:
            if (one["name"], one["revision"]) == (name, revision):
                return str(self.path / one["folder"]), None
        return name, revision

    def commit(self, half: int) -> str | None:
        """Return the commit that a half's checkpoint had on the Hub, None where it came from a folder."""
        return self.manifest["models"][half]["folder"].partition("@")[2] or None


def opened(config: AnyConfig) -> Bundle | None:
    """Check the bundle that a config names, and keep this process off the network; None: it names none.

    Every byte is hashed, once a process: 0.8 GiB/s (one core, shared; a BERT-base is 0.4 GiB), and without a bundle
    a run hashes its files too.

    Raises:
        ConfigError: It is missing or damaged, or was made for other rows or checkpoints.
    """
    if isinstance(config, ReportConfig) or config.bundle.path is None:
        return None
    found = verify(Path(config.bundle.path))
    _check_asked(config, found)
    _go_offline()
    return found


def verify(path: Path) -> Bundle:
    """Compare every file of a bundle with its manifest.

    Raises:
        ConfigError: With every file that is missing, too many, or another one.
    """
    manifest = _manifest(path)
    again = f"Copy it again, or where there is a network: encdec bundle bundle.path={shlex.quote(str(path))}"
    files: dict[str, dict[str, Any]] = manifest["files"]
    here = {name for name in _names(path) if name != MANIFEST}
    faults = [
        fault(f"{path}/{name}", "no such file", None, "the bundle has none", "Remove it") for name in here - {*files}
    ]
    for name, said in files.items():
        expected = f"{said['bytes']:,} bytes with SHA-256 {said['sha256'][:12]}…"
        if name not in here:
            faults.append(fault(f"{path}/{name}", expected, None, "it is missing", again))
        elif (size := (path / name).stat().st_size) != said["bytes"]:
            faults.append(fault(f"{path}/{name}", expected, f"{size:,} bytes", "", again))
        elif (digest := file_sha256(path / name)) != said["sha256"]:
            faults.append(fault(f"{path}/{name}", expected, f"{digest[:12]}…", "it was changed", again))
    if faults:
        more = [f"and {len(faults) - NUM_SHOWN} more files."] if len(faults) > NUM_SHOWN else []
        raise ConfigError(sorted(faults)[:NUM_SHOWN] + more)
    return Bundle(path, manifest)


def say_verified(config: VerifyConfig) -> None:
    """Make `encdec verify`."""
    console.say(f"{_summary(verify(Path(str(config.bundle.path))))}, all as they were bundled")


def build(
    config: TrainConfig,
    checkpoints: Mapping[str, str],
    sources: "tuple[Source, Source]",
    splits: Mapping[str, SplitSource],
) -> Path:
    """Collect what a run reads; a whole bundle of the same run is left as it is, a damaged one is replaced.

    Args:
        config: The run.
        checkpoints: The fingerprint of each half's checkpoint.
        sources: Where the encoder's and the decoder's checkpoint lie.
        splits: Its rows by split.

    Raises:
        ConfigError: When something else is at the place.
        OSError: When it cannot be written; nothing is left of it then.
    """
    path = Path(str(config.bundle.path))
    text = to_yaml(replace(config, bundle=BundleConfig(path=None)))
    if path.exists() and _is_whole(path, config, text):
        console.say(f"{path} is whole; nothing to do")
        return path
    built = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        built.mkdir(parents=True)
        models = _copy_models(config.model, sources, built)
        for name, split in splits.items():
            _write_rows(split.load(), built / _file_of(name))
        (built / CONFIG).write_text(text, encoding="utf-8")
        said = {name: {"fingerprint": split.fingerprint, "limit": _limit(config.task, name),
                       "origin": dict(split.origin)} for name, split in splits.items()}  # fmt: skip
        files = {name: {"bytes": (built / name).stat().st_size, "sha256": file_sha256(built / name)}
                 for name in sorted(_names(built))}  # fmt: skip
        values = {"task": _rows_of(config.task), "models": models, "checkpoints": dict(checkpoints),
                  "splits": said, "files": files}  # fmt: skip
        atomic.write_json(built / MANIFEST, {**values, "checksum": json_sha256(values)})
        atomic.install(built, path, replace=path.exists())
    finally:
        shutil.rmtree(built, ignore_errors=True)
    console.say(f"{_summary(Bundle(path, values))}. Copy it anywhere; there, without network:")
    console.say(f"  encdec train bundle.path={shlex.quote(str(path))}")
    return path


def _summary(bundle: Bundle) -> str:
    sizes = [said["bytes"] for said in bundle.manifest["files"].values()]
    return f"{bundle.path}: {len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB"


def _is_whole(path: Path, config: TrainConfig, text: str) -> bool:
    """Tell whether a place holds this run's bundle, False for a damaged one; refuse any other."""
    if not (path / MANIFEST).is_file():
        reason, remedy = f"it has no {MANIFEST}", "Choose another, or move away what is there"
        raise ConfigError(fault("bundle.path", "a new folder, or this run's bundle", str(path), reason, remedy))
    manifest = _manifest(path)
    _check_asked(config, Bundle(path, manifest))
    try:
        verify(path)
    except ConfigError as error:
        console.say(f"{error}\nIt is made again.")
        return False
    if text != (path / CONFIG).read_text(encoding="utf-8"):
        reason = f"its {CONFIG} says otherwise; the rows and checkpoints are the same, so it serves this run too"
        raise ConfigError(
            fault("bundle.path", "a new folder, or this run's bundle", str(path), reason, "Use it as it is")
        )
    return True


def _manifest(path: Path) -> dict[str, Any]:
    key, here = "bundle.path", path / MANIFEST
    if not here.is_file():
        reason = f"it has no {MANIFEST}" if path.is_dir() else "there is no such folder"
        remedy = f"Where there is a network: encdec bundle <train's keys> bundle.path={shlex.quote(str(path))}"
        raise ConfigError(fault(key, WHOLE, str(path), reason, remedy))
    try:
        values: dict[str, Any] = json.loads(here.read_text(encoding="utf-8"))
        whole = values.pop("checksum") == json_sha256(values)
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        remedy = "Copy the bundle again, or move it away and make it again"
        raise ConfigError(fault(key, WHOLE, str(path), f"{MANIFEST} was changed", remedy))
    return values


def _check_asked(config: AnyConfig, bundle: Bundle) -> None:
    """Refuse a config that asks for other rows or checkpoints than those of the bundle."""
    pairs: list[tuple[str, object, object]] = []  # key, as bundled, asked for
    trains = isinstance(config, TrainConfig)  # from the bundle's config; the others begin with their own defaults
    faults, remedy = [], f"{'Leave it out' if trains else 'Set it so'}, or bundle this run in a folder of its own"
    if (task := asked_rows(config)) is not None:
        theirs, mine = bundle.manifest["task"], _rows_of(task)
        read = {config.split} if isinstance(config, EvaluateConfig | ScoreConfig) else {*bundle.manifest["splits"]}
        unread = set() if "train" in read else {"train_fraction", "fraction_seed", "bad_records"}
        given = [key for key in mine if trains or (mine[key] is not None and key not in unread)]
        pairs += [(f"task.{key}", theirs.get(key), mine.get(key)) for key in given]
        for name, said in bundle.manifest["splits"].items():
            asked = _limit(task, name)
            if name in read and said["limit"] is not None and (asked is None or asked > said["limit"]):
                key = f"task.num_{name if name in {'train', 'validation'} else 'test'}_examples"
                faults.append(fault(key, f"1..{said['limit']}", _shown(asked), "no more were bundled", remedy))
    if isinstance(config, TrainConfig):
        if (alone := "encoder" not in bundle.manifest["checkpoints"]) != (config.model.encoder is None):
            pairs.append(
                ("model.encoder", None if alone else bundle.manifest["models"][0]["name"], config.model.encoder)
            )
        for half, (name, revision), one in zip(HALVES, config.model.sources, bundle.manifest["models"], strict=True):
            pairs += [(f"model.{half}", one["name"], name), (f"model.{half}_revision", one["revision"], revision)]
    reason = f"{bundle.path} was bundled so"
    faults += [fault(key, _shown(said), _shown(asked), reason, remedy) for key, said, asked in pairs if said != asked]
    if faults:
        raise ConfigError(faults)


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def asked_rows(config: AnyConfig) -> TaskConfig | None:
    """Return the task whose rows a verb reads: `generate` and `compare` read none, `score` only where there are any."""
    if not isinstance(config, TrainConfig | EvaluateConfig | ScoreConfig):
        return None
    named = config.task.name != "files" or config.task.train_file or config.task.test_file
    return config.task if named or not isinstance(config, ScoreConfig) else None


def _rows_of(task: TaskConfig) -> dict[str, Any]:
    return {key: value for key, value in to_dict(task).items() if key not in SAME_ROWS | LIMITS}


def _limit(task: TaskConfig, split: str) -> int | None:
    """Return how many of a split's bundled rows are used: a fraction of the training rows is what was bundled."""
    return task.num_train_examples if split == "train" else limit_of(task, split)


def _copy_models(model: ModelConfig, sources: "tuple[Source, Source]", built: Path) -> list[dict[str, str | None]]:
    """Copy both checkpoints, one that both halves use once; never a pickle."""
    folders: dict[str, str] = {}
    models: list[dict[str, str | None]] = []
    for half, (name, revision), source in zip(HALVES, model.sources, sources, strict=True):
        if source.name not in folders:
            part = "decoder" if source.alone else half
            folders[source.name] = f"models/{part}" + (f"@{source.revision}" if source.revision else "")
            _copy_checkpoint(Path(source.name), built / folders[source.name])
        models.append({"name": name, "revision": revision, "folder": folders[source.name]})
    return models


def _copy_checkpoint(source: Path, folder: Path) -> None:
    for file in checkpoint_files(source):
        if file.suffix != ".bin":
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _file_of(split: str) -> str:
    return f"data/{split}.parquet"


def _write_rows(rows: Rows, file: Path) -> None:
    from pyarrow import parquet

    file.parent.mkdir(exist_ok=True)
    with parquet.ParquetWriter(file, rows.table(0, 0).schema, compression="zstd") as writer:
        for start in range(0, len(rows), _GROUP_ROWS):
            writer.write_table(rows.table(start, start + _GROUP_ROWS))


def _read_rows(file: Path, limit: int | None) -> Rows:
    from pyarrow import parquet

    return Rows.of_table(parquet.read_table(file).slice(0, limit))


def _names(path: Path) -> list[str]:
    """List the files of a folder; hidden ones are the file system's or a viewer's."""
    files = (file.relative_to(path) for file in path.rglob("*") if not file.is_dir())
    return [file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts)]


def _go_offline() -> None:
    """Let this process and its children ask neither the Hub nor, unless it is told to, W&B."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    if not wandb_setup.mode() and wandb_setup.is_configured():
        os.environ["WANDB_MODE"] = "offline"
