"""What the documents say can be typed and clicked: commands parse, links and anchors resolve, named files exist."""

import ast
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import pytest

import encdec_train
from encdec_train import cli, compose, errors

README_LINES = 200
RUNNABLE = {"bash", "console", "sh", "shell"}
LIVING = ("CONTRIBUTING.md", "README.md", "docs/overview.md", "slurm/README.md")  # the others tell history
PLACEHOLDER = re.compile(r"<\w[^<>\n]*>|…|\.\.\.")
FENCE = re.compile(r"(?ms)^ *(?P<ticks>```+|~~~+)(?P<info>[^\n`]*)\n(?P<body>.*?)^ *(?P=ticks)[`~]* *$")
LINK = re.compile(r"(?<!\\)\]\(\s*<?(?P<target>[^()\s<>]+(?:\([^()\s]*\))?)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(?P<target>[^\s<>]+)>?", re.MULTILINE)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(?P<text>.+?)\s*#*\s*$", re.MULTILINE)
OUR_PATH = re.compile(r"`((?:benchmarks|conf|docs|encdec_train|slurm|tests)/[\w./-]*)`")


def blocks(text: str, languages: set[str]) -> list[tuple[str, str]]:
    """Return language and body of every fenced block in one of the languages."""
    fences = [(match["info"].strip().split(" ")[0].lower(), match["body"]) for match in FENCE.finditer(text)]
    return [(language, body) for language, body in fences if language in languages]


def prose(text: str) -> str:
    """Return a document without its code."""
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", FENCE.sub("", text))


def lines_to_type(text: str) -> Iterator[str]:
    """Yield every line of the runnable blocks, continued lines as one; in a console only what follows `$ `."""
    for language, body in blocks(text, RUNNABLE):
        for line in re.sub(r"\\\n\s*", " ", body).splitlines():
            typed = line.strip()
            if language == "console":
                typed = typed.removeprefix("$ ") if typed.startswith("$ ") else ""
            if typed and not typed.startswith("#"):
                yield typed


def without_shell(line: str) -> str:
    """Put a word in the place of `$(a command)`, `$VARIABLE` and `${VARIABLE}`; Hydra's `${a.key}` stays."""
    while (start := line.find("$(")) >= 0:
        depth, end = 1, start + 2
        while depth and end < len(line):
            depth += {"(": 1, ")": -1}.get(line[end], 0)
            end += 1
        line = f"{line[:start]}value{line[end:]}"
    return re.sub(r"\$\w+|\$\{\w+\}", "value", line)


def commands(line: str) -> list[list[str]]:
    """Split a line into its commands, without assignments before and redirections after."""
    lexer = shlex.shlex(without_shell(line), posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if word.startswith("#"):
            break
        if set(word) <= set("|&;()"):
            found.append([])
        elif set(word) <= set("<>"):
            redirected = True
        elif redirected:
            redirected = False
        elif found[-1] or not re.match(r"\w+=", word):
            found[-1].append(word)
    return [words for words in found if words]


def make_targets(makefile: str) -> set[str]:
    """Return the targets that a Makefile names."""
    return {name for names in re.findall(r"^([\w ./-]+?):(?!=)", makefile, re.MULTILINE) for name in names.split()}


def command_faults(words: Sequence[str], targets: set[str]) -> list[str]:
    """Return what is wrong with a command of ours; other commands are not looked at."""
    name, arguments = PurePath(words[0]).name, list(words[1:])
    if name == "make":
        return [f"make {word}: no such target" for word in arguments if "=" not in word and word not in targets]
    if name.startswith("python") and arguments[:2] == ["-m", "encdec_train"]:
        name, arguments = "encdec", arguments[2:]
    return encdec_faults(arguments) if name == "encdec" else []


def encdec_faults(arguments: Sequence[str]) -> list[str]:
    """Return what `encdec` would refuse before it loads anything."""
    verb = arguments[0] if arguments else "nothing"
    if verb in {"--help", "--version"}:
        return []
    if verb not in cli.VERBS:
        return [f"encdec {verb}: no such verb"]
    overrides = [word for word in arguments[1:] if not word.startswith("-")]
    if verb not in compose.CONFIGS:
        return []
    try:
        for job in compose.sweep(overrides) if {"--multirun", "-m"} & set(arguments) else [overrides]:
            compose.compose(verb, job)
    except errors.ConfigError as error:
        return [f"encdec {verb}: {one}" for one in error.faults]
    return []


def slugs(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub forms them."""
    seen: dict[str, int] = {}
    for match in HEADING.finditer(FENCE.sub("", text)):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", match["text"]).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        if seen[slug]:
            seen[f"{slug}-{seen[slug]}"] = 0
    return set(seen)


def dead_links(path: str, text: str, root: Path) -> list[str]:
    """Return the links of a document that lead to no file or no heading. The network is not asked."""
    plain, dead = prose(text), []
    for target in [match["target"] for pattern in (LINK, DEFINITION) for match in pattern.finditer(plain)]:
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (root / path).parent / file if file else root / path
        found = there.exists() and there.resolve().is_relative_to(root)
        if not found or (anchor and there.suffix == ".md" and anchor not in slugs(there.read_text(encoding="utf-8"))):
            dead.append(target)
    return dead


def missing_files(text: str, root: Path) -> list[str]:
    """Return the paths of ours that a document names in backticks and that are not there."""
    return [name for name in OUR_PATH.findall(FENCE.sub("", text)) if not (root / name).exists()]


def python_faults(code: str) -> list[str]:
    """Return what does not parse, and names that the package does not export."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        return [str(error)]
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "encdec_train"]
    names = [alias.name for node in ours for alias in node.names]
    return [f"encdec_train.{name}" for name in names if name not in encdec_train.__all__]


@pytest.fixture
def living(texts: Mapping[str, str]) -> Mapping[str, str]:
    return {path: texts[path] for path in LIVING}


def test_the_readme_is_short(texts: Mapping[str, str]) -> None:
    assert len(texts["README.md"].splitlines()) < README_LINES


def test_the_readme_starts_with_the_two_commands(texts: Mapping[str, str]) -> None:
    typed = [words for line in lines_to_type(texts["README.md"]) for words in commands(line)]
    assert ["make", "demo"] in typed
    assert any(words[:2] == ["encdec", "train"] and "task=files" in words for words in typed)


def test_commands_can_be_typed(living: Mapping[str, str], root: Path) -> None:
    targets = make_targets((root / "Makefile").read_text(encoding="utf-8"))
    assert {"check", "test", "demo", "clean"} <= targets
    typed = [(path, line) for path, text in living.items() for line in lines_to_type(text)]
    found = [f"{path}: {line}" for path, line in typed if PLACEHOLDER.search(without_shell(line))]
    for path, line in typed:
        found += [f"{path}: {fault}" for words in commands(line) for fault in command_faults(words, targets)]
    assert found == [], "\n".join(found)


def test_python_can_be_typed(living: Mapping[str, str]) -> None:
    code = [(path, body) for path, text in living.items() for _, body in blocks(text, {"python"})]
    found = [f"{path}: {fault}" for path, body in code for fault in python_faults(body)]
    assert found == [], "\n".join(found)


def test_links_lead_somewhere(texts: Mapping[str, str], root: Path) -> None:
    pages = {path: text for path, text in texts.items() if path.endswith(".md")}
    found = [f"{path}: {target}" for path, text in pages.items() for target in dead_links(path, text, root)]
    assert found == [], "\n".join(found)


def test_named_files_exist(living: Mapping[str, str], root: Path) -> None:
    found = [f"{path}: {name}" for path, text in living.items() for name in missing_files(text, root)]
    assert found == [], "\n".join(found)


def test_every_decision_is_in_the_index(texts: Mapping[str, str]) -> None:
    decisions = {PurePath(path).name for path in texts if re.fullmatch(r"docs/adr/\d{4}-[\w-]+\.md", path)}
    assert decisions
    assert decisions == set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", texts["docs/adr/README.md"]))


# The checkers themselves, on planted text.

PLANTED = """
# One thing

```console
$ make demo
an answer with make nothing
$ encdec train task=files \\
    task.train_file=$DATA/a.jsonl.gz
```

```bash
# a comment
WANDB_MODE=offline python -m encdec_train train model.encoder=$(python -c "print(f(1))")  # another
```

```text
make nothing
```

## `Two` *things*: here
## One thing
[a](#one-thing-1) [b](#two-things-here) [c](#three) [d](gone.md) [e](there.md#yes) [f](there.md#no) `[g](code.md)`
[h](https://host.org/x) ![i](gone.png "title")

[j]: gone/too.md
"""


def test_lines_to_type_are_found() -> None:
    assert [words for line in lines_to_type(PLANTED) for words in commands(line)] == [
        ["make", "demo"],
        ["encdec", "train", "task=files", "task.train_file=value/a.jsonl.gz"],
        ["python", "-m", "encdec_train", "train", "model.encoder=value"],
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cd x && make test | tee log", [["cd", "x"], ["make", "test"], ["tee", "log"]]),
        ("encdec generate input=- < in.txt > out.txt", [["encdec", "generate", "input=-"]]),
        ("encdec train 'model.decoder=${model.encoder}'", [["encdec", "train", "model.decoder=${model.encoder}"]]),
    ],
)
def test_a_line_is_split_as_the_shell_splits_it(line: str, expected: list[list[str]]) -> None:
    assert commands(line) == expected


@pytest.mark.parametrize("line", ["encdec train task.train_file=<your file>", "encdec train … seed=1", "make test ..."])
def test_placeholders_are_found(line: str) -> None:
    assert PLACEHOLDER.search(line)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("make nothing", "make nothing: no such target"),
        ("encdec", "encdec nothing: no such verb"),
        ("encdec tune", "encdec tune: no such verb"),
        ("encdec train optim.lrr=1", "optim.lr"),
        ("python3 -m encdec_train train seed=1,2", "--multirun"),
    ],
)
def test_wrong_commands_are_found(line: str, part: str) -> None:
    [words] = commands(line)
    [fault] = command_faults(words, {"test"})
    assert part in fault


@pytest.mark.parametrize(
    "line", ["make test PYTHON=python3.12", "encdec train", "encdec train --multirun seed=1,2", "encdec --help", "ls x"]
)
def test_right_commands_are_not(line: str) -> None:
    [words] = commands(line)
    assert command_faults(words, {"test"}) == []


def test_make_targets_are_read() -> None:
    makefile = "A ?= 1\nB := 2\n.PHONY: check\ncheck: x\n\techo c: d\ntest demo: y\ntest: export H = 1\n"
    assert make_targets(makefile) == {".PHONY", "check", "test", "demo"}


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Yes\n")
    (tmp_path / "page.md").write_text(PLANTED)
    assert dead_links("page.md", PLANTED, tmp_path) == ["#three", "gone.md", "there.md#no", "gone.png", "gone/too.md"]


def test_missing_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "log.md").touch()
    text = "`docs/log.md`, `docs/gone.md`, `conf/`, `elsewhere/x.py`\n```text\n`docs/in_a_block.md`\n```\n"
    assert missing_files(text, tmp_path) == ["docs/gone.md", "conf/"]


def test_wrong_python_is_found() -> None:
    assert python_faults("from encdec_train import no_such_name") == ["encdec_train.no_such_name"]
    assert python_faults("from encdec_train import (") != []
    assert python_faults("import encdec_train\nencdec_train.train([])\n") == []
