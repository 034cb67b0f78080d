"""Every YAML that is shipped composes and checks, and every key is there to be read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from encdec_train.compose import CONFIGS, compose, conf_dir, valid_keys
from encdec_train.config import TrackerName, TrainConfig, to_dict

FILES = sorted(
    path.relative_to(conf_dir()).as_posix()
    for path in conf_dir().rglob("*.y*ml")
    if "experiment" not in path.parts  # see test_experiments.py
)
NUM_FILES = 48
NEEDED = {
    "compare": ["a=x", "b=y"],
    "evaluate": ["checkpoint=x"],
    "generate": ["checkpoint=x"],
    "report": ["runs=[x]"],
    "score": ["predictions=x"],
    "submit": [],
    "train": [],
    "bundle": ["bundle.path=x"],
    "verify": ["bundle.path=x"],
}
NOT_OF_THE_DEMO = {"model/gpt.yaml": ["task=files"]}  # which pretrains a BERT
NOT_TO_TRAIN = {
    "decoding/as_exported.yaml": "generate",
    "cluster/default.yaml": "submit",
}  # every other choice is one of `encdec train`

# What scripts may depend on.
CONTRACT = """
run.name run.output_dir seed
task.train_file task.validation_file task.test_file task.source_column task.target_column task.reverse task.metrics
task.max_source_tokens task.max_target_tokens task.overlong task.revision
model.encoder model.decoder model.share model.init model.dropout model.attention_dropout
data.batch_examples data.batch_target_tokens data.max_micro_tokens
optim.name optim.lr optim.warmup_steps optim.schedule optim.weight_decay optim.label_smoothing optim.max_grad_norm
trainer.max_steps trainer.max_epochs trainer.devices trainer.accelerator trainer.num_nodes trainer.precision
trainer.validate_every_steps trainer.checkpoint_every_steps trainer.keep_last trainer.best_metric
trainer.patience_validations trainer.log_every_steps
decoding.num_beams decoding.length_penalty decoding.max_new_tokens decoding.no_repeat_ngram
"""


def arguments(file: str) -> tuple[str, list[str]]:
    """Return the verb and the overrides that take a YAML file in."""
    path = Path(file)
    if path.parent == Path():
        return path.stem, NEEDED[path.stem]
    verb = NOT_TO_TRAIN.get(file, "train")
    group = "task" if path.parent.name == "defaults_of" else path.parent.as_posix()
    return verb, [*NEEDED[verb], *NOT_OF_THE_DEMO.get(file, []), f"{group}={path.stem}"]


def test_none_is_overlooked() -> None:
    assert len(FILES) == NUM_FILES
    assert {f"{verb}.yaml" for verb in CONFIGS} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_file_composes_and_checks(file: str) -> None:
    verb, overrides = arguments(file)
    config = compose(verb, overrides)
    group, _, name = file.removesuffix(".yaml").partition("/")
    if group in {"model", "task", "optim"}:
        assert to_dict(config)[group]["name"] == name


def test_every_tracker_has_a_file() -> None:
    shipped = {Path(file).stem for file in FILES if file.startswith("tracking/")}
    assert shipped == {name.value for name in TrackerName}
    assert {compose("train", [f"tracking={name}"]).tracking.kind.value for name in shipped} == shipped


def test_every_key_of_the_contract_exists() -> None:
    keys = CONTRACT.split()
    assert len(keys) == 46
    assert [key for key in keys if key not in set(valid_keys(TrainConfig))] == []


def reads(tree: ast.Module) -> Iterator[str]:
    """Yield every name that is read from an object: `config.optim.lr` reads `optim` and `lr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            yield from (text for argument in node.args[1:2] for text in spelled(argument))


def spelled(argument: ast.expr) -> list[str]:
    """Return the attribute names that the second argument of a `getattr` may be."""
    if isinstance(argument, ast.Constant):
        return [str(argument.value)]
    if isinstance(argument, ast.JoinedStr):
        suffix = str(getattr(argument.values[-1], "value", ""))
        splits = ("train", "validation", "test") if suffix == "_file" else ()
        return [f"{split}{suffix}" for split in splits]
    return []


PROPERTIES = {  # of the config: what each of them hands on
    "limits": {"max_source_tokens", "max_target_tokens"},
    "sources": {"encoder", "decoder", "encoder_revision", "decoder_revision"},
    "layers": {"encoder_layers", "decoder_layers"},
}


def test_every_key_is_read() -> None:
    package = Path(compose.__code__.co_filename).parent
    files = [path for path in package.rglob("*.py") if path.name not in {"config.py", "config_cluster.py", "check.py"}]
    found = {name for path in files for name in reads(ast.parse(path.read_text(encoding="utf-8")))}
    for property_name, names in PROPERTIES.items():
        found |= names if property_name in found else set()
    keys = {key for cls in CONFIGS.values() for key in valid_keys(cls)}
    assert sorted(key for key in keys if key.rpartition(".")[2] not in found) == []


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("x = config.optim.lr", {"optim", "lr"}),
        ("config.optim.lr = 1", {"optim"}),
        ("getattr(task, f'{name}_file')", {"train_file", "validation_file", "test_file"}),
        ("getattr(task, 'reverse')", {"reverse"}),
        ("x = {'reverse': 1}", set()),
    ],
)
def test_the_search_for_readers_finds_them(code: str, names: set[str]) -> None:
    assert set(reads(ast.parse(code))) == names
