"""Names and calls that have no place here, each with its reason. Every ban is shown to fire on a planted line."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath

import pytest

DRAWERS = {"common", "helper", "helpers", "misc", "util", "utils"}
PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# Paths of one machine, and references that only its owner can open; a public issue is named with its project.
PRIVATE = re.compile(
    r"(?<![\w./~}$-])/(?:home|media|mnt|root|scratch|Users|work|workspace)/(?!somebody\b|user\b|you\b)\w"
    r"|(?<![\w./])/tmp/\w+/\w"
    r"|\b(?:in|see|of|by|after) (?:our |this )?issues? #?\d{1,2}\b",
    re.IGNORECASE,
)


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for a chain of names, and an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def strings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield every string that is not a docstring or another statement of its own."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


def imported(node: ast.AST) -> list[str]:
    """Return the full names that an import statement brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def is_false(node: ast.AST) -> bool:
    """Tell whether an expression is the literal False."""
    return isinstance(node, ast.Constant) and node.value is False


def is_assert(node: ast.AST) -> bool:
    """An input is checked with an error of our own; `python -O` removes asserts."""
    return isinstance(node, ast.Assert)


def is_broad_except(node: ast.AST) -> bool:
    """What is not expected must reach the user with its traceback."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(kind is None or dotted(kind) in {"Exception", "BaseException"} for kind in caught)


def is_print(node: ast.AST) -> bool:
    """Standard output belongs to what scripts read; progress and logs go through `console.py`."""
    return isinstance(node, ast.Call) and dotted(node.func) in {"print", "pprint.pprint"}


def is_config_get(node: ast.AST) -> bool:
    """A misspelt key must be an error, not the default. (A checkpoint's own JSON needs another name than these.)"""
    roots = {"cfg", "conf", "config"}
    return isinstance(node, ast.Call) and (name := dotted(node.func)).endswith(".get") and name.split(".")[0] in roots


def is_config_store(node: ast.AST) -> bool:
    """YAML holds the values, in one place."""
    return "ConfigStore" in dotted(node).split(".") or any("ConfigStore" in name.split(".") for name in imported(node))


def is_instantiate(node: ast.AST) -> bool:
    """Hydra's `instantiate` runs what a config names (known_defects S1)."""
    names = [dotted(node.func)] if isinstance(node, ast.Call) else imported(node)
    return any(name.split(".")[-1] in {"instantiate", "get_class", "get_object"} for name in names)


def is_pickle(node: ast.AST) -> bool:
    """Reading a pickle runs it; weights are safetensors, state is JSON and tensors (known_defects S2 to S4)."""
    return any(name.split(".")[0] in PICKLES or name == "torch.load" for name in imported(node)) or (
        isinstance(node, ast.Attribute) and dotted(node) == "torch.load"
    )


def is_eval(node: ast.AST) -> bool:
    """Text is never run."""
    return isinstance(node, ast.Call) and dotted(node.func) in {"eval", "exec", "builtins.eval", "builtins.exec"}


def is_shell(node: ast.AST) -> bool:
    """A file name with a space or a semicolon is a file name."""
    if not isinstance(node, ast.Call):
        return False
    shell = any(word.arg == "shell" and not is_false(word.value) for word in node.keywords)
    return shell or dotted(node.func) in {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}


def trusts_remote_code(node: ast.AST) -> bool:
    """A checkpoint is data: its repository's Python is not run."""
    return isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and not is_false(node.value)


Ban = Callable[[ast.AST], bool]
# ban, the files that are allowed to, a line that is caught, a line that is not
BANS: Sequence[tuple[Ban, set[str], Sequence[str], Sequence[str]]] = [
    (is_assert, set(), ["assert x"], ["x = 'assert y'"]),
    (
        is_broad_except,
        set(),
        ["try: x\nexcept Exception: y", "try: x\nexcept: y", "try: x\nexcept (OSError, BaseException): y"],
        ["try: x\nexcept (OSError, ValueError): y"],
    ),
    (is_print, {"encdec_train/console.py"}, ["print(x)", "pprint.pprint(x)"], ["console.say(x)", "self.print(x)"]),
    (is_config_get, set(), ["cfg.get('lr', 1)", "config.optim.get('lr')"], ["os.environ.get('X')", "row.get('x')"]),
    (
        is_config_store,
        set(),
        ["from hydra.core.config_store import ConfigStore", "config_store.ConfigStore.instance()"],
        ["store = 1"],
    ),
    (
        is_instantiate,
        set(),
        ["from hydra.utils import instantiate", "hydra.utils.instantiate(x)", "instantiate(x)"],
        ["build(x)"],
    ),
    (
        is_pickle,
        set(),
        ["import pickle", "from pickle import loads", "torch.load(x)", "from torch import load", "read = torch.load"],
        ["torch.save(x, y)", "json.loads(x)", "safetensors.torch.load_file(x)"],
    ),
    (is_eval, set(), ["eval(x)", "exec(x)"], ["model.eval()"]),
    (
        is_shell,
        set(),
        ["os.system(x)", "subprocess.run(x, shell=True)", "subprocess.run(x, shell=flag)"],
        ["subprocess.run([x], check=True)", "subprocess.run(x, shell=False)"],
    ),
    (
        trusts_remote_code,
        set(),
        ["load(x, trust_remote_code=True)", "load(x, trust_remote_code=flag)"],
        ["load(x, trust_remote_code=False)"],
    ),
]
IDS = [ban.__name__ for ban, *_ in BANS]


def places(tree: ast.Module, ban: Ban) -> list[int]:
    """Return the lines on which a ban is broken."""
    return [getattr(node, "lineno", 0) for node in ast.walk(tree) if ban(node)]


@pytest.mark.parametrize(("ban", "allowed"), [(ban, allowed) for ban, allowed, *_ in BANS], ids=IDS)
def test_the_package_keeps_the_ban(ban: Ban, allowed: set[str], package: Mapping[str, ast.Module]) -> None:
    found = [f"{path}:{line}" for path, tree in package.items() if path not in allowed for line in places(tree, ban)]
    assert found == [], "\n".join([str(ban.__doc__), *found])


@pytest.mark.parametrize(
    ("ban", "line", "caught"),
    [(ban, line, True) for ban, _, bad, _ in BANS for line in bad]
    + [(ban, line, False) for ban, _, _, good in BANS for line in good],
)
def test_the_ban_fires(ban: Ban, line: str, caught: bool) -> None:
    assert bool(places(ast.parse(line), ban)) is caught


def strings_that(tree: ast.Module, pattern: str) -> list[int]:
    """Return the lines of strings that hold a pattern."""
    return [node.lineno for node in strings(tree) if re.search(pattern, str(node.value))]


@pytest.mark.parametrize(
    ("pattern", "only"),
    [
        (r"\b_target_\b|\b_partial_\b", {"encdec_train/compose.py"}),  # which refuses them
        # the one reader of the scheduler's environment, and the one writer of scripts that read it
        (r"^SLURM_|\$\{?SLURM_", {"encdec_train/distributed.py", "encdec_train/cluster/script.py"}),
    ],
)
def test_a_string_stays_in_its_module(pattern: str, only: set[str], package: Mapping[str, ast.Module]) -> None:
    others = {path: tree for path, tree in package.items() if path not in only}
    found = [f"{path}:{line}" for path, tree in others.items() for line in strings_that(tree, pattern)]
    assert found == [], "\n".join(found)


def test_the_string_rule_fires_on_code_and_not_on_prose() -> None:
    assert strings_that(ast.parse("'''SLURM_ is prose'''\n\nrank = os.environ['SLURM_PROCID']"), r"^SLURM_") == [3]
    assert strings_that(ast.parse("x = {'_target_': 'os.system'}"), r"\b_target_\b") == [1]


def yaml_faults(text: str) -> list[str]:
    """Return what a YAML file of ours must not hold: code, and the clock (known_defects R11)."""
    return re.findall(r"\b_target_\b|\b_partial_\b|\$\{now\b|\$\{oc\.env\b|!!python", text)


def test_yaml_holds_values_only(texts: Mapping[str, str]) -> None:
    conf = {path: text for path, text in texts.items() if path.startswith("conf/") and path.endswith((".yaml", ".yml"))}
    assert conf
    found = [f"{path}: {fault}" for path, text in conf.items() for fault in yaml_faults(text)]
    assert found == [], "\n".join(found)


def test_the_yaml_rule_fires() -> None:
    assert yaml_faults("dir: outputs/${now:%Y}\nlr:\n  _target_: os.system\n") == ["${now", "_target_"]
    assert yaml_faults("name: ${task.name}\nmax_target_tokens: 1\n") == []


def drawers(paths: Sequence[str]) -> list[str]:
    """Return files and folders that are named for nothing in particular."""
    return [path for path in paths if {PurePath(part).stem for part in PurePath(path).parts} & DRAWERS]


def test_no_file_is_a_drawer(texts: Mapping[str, str]) -> None:
    assert drawers(list(texts)) == []


def test_the_drawer_rule_fires() -> None:
    caught = ["encdec_train/utils.py", "encdec_train/common/io.py", "tests/unit/test_x/helpers.py"]
    assert drawers([*caught, "encdec_train/data/plan.py", "docs/utility.md"]) == caught


def private(text: str) -> list[str]:
    """Return the lines that only make sense on one machine or to one person."""
    return [line for line in text.splitlines() if PRIVATE.search(line)]


def test_nothing_is_private_to_one_machine(texts: Mapping[str, str]) -> None:
    others = {path: text for path, text in texts.items() if path != "tests/architecture/test_bans.py"}
    found = [f"{path}: {line}" for path, text in others.items() for line in private(text)]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("read /home/jane/data.jsonl", True),
        ("read /home/somebody/data.jsonl", False),
        ('Path("/scratch/x")', True),
        ("see issue 2", True),
        ("/tmp/runs/a.txt", True),
        ("Lightning issue 21487", False),
        ("template issue #393", False),
        ("https://host.org/home/page", False),
        ("outputs/home/x and tests/root/y", False),
    ],
)
def test_the_private_rule_fires(line: str, caught: bool) -> None:
    assert bool(private(line)) is caught
