"""Nothing grows past what can be read in one sitting. Each limit fails with the place and the size found."""

import ast
import dataclasses
import io
import math
import textwrap
import tokenize
import typing
from collections.abc import Callable, Iterator, Mapping

import pytest

from encdec_train import compose

FILE_LINES, PACKAGE_LINES = 400, 9_000
FUNCTION_LINES, FUNCTION_LINES_P90 = 60, 25
NESTING, ARGUMENTS, METHODS, CONFIG_LEAVES = 3, 6, 12, 120

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.Match)


def code_lines_of(text: str) -> set[int]:
    """Return the numbers of the lines that hold code: neither blank nor only a comment."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {line for token in tokens if token.type not in layout for line in range(token.start[0], token.end[0] + 1)}


def functions(tree: ast.Module) -> Iterator[Function]:
    """Yield every function and method, also those inside others."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def num_code_lines(function: Function, code: set[int]) -> int:
    """Count the lines of a function that hold code, from `def` on, without its docstring."""
    first, inside = function.body[0], set(range(function.lineno, (function.end_lineno or 0) + 1))
    if ast.get_docstring(function, clean=False) is not None:
        inside -= set(range(first.lineno, (first.end_lineno or 0) + 1))
    return len(inside & code)


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Return how deep blocks lie in one another. An `elif` lies beside its `if`; an inner function starts anew."""
    deepest = depth
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, Function | ast.ClassDef | ast.Lambda):
                continue
            beside = name == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If) and len(value) == 1
            deepest = max(deepest, nesting(child, depth + (isinstance(child, BLOCKS) and not beside)))
    return deepest


def num_arguments(function: Function) -> int:
    """Count the arguments that a caller may name, keyword-only ones too, without `self` and `cls`."""
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([arg for arg in named if arg.arg not in {"self", "cls"}])


def num_methods(cls: ast.ClassDef) -> int:
    """Count what is defined with `def` directly in a class."""
    return sum(isinstance(node, Function) for node in cls.body)


def percentile_90(values: list[int]) -> int:
    """Return the smallest value that nine tenths of the values do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1] if values else 0


def leaves(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the full key of every leaf of a config class."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_files_are_short(texts: Mapping[str, str]) -> None:
    python = {path: len(text.splitlines()) for path, text in texts.items() if path.endswith(".py")}
    found = [f"{path}: {lines}" for path, lines in python.items() if lines > FILE_LINES]
    assert found == [], "\n".join(found)


@pytest.mark.xfail(strict=True, reason="the plan of 9,000 lines is not kept: docs/adr/0007 has the figures")
def test_the_package_is_small(texts: Mapping[str, str]) -> None:
    sizes = {path: len(text.splitlines()) for path, text in texts.items() if path.startswith("encdec_train/")}
    assert 0 < sum(sizes.values()) <= PACKAGE_LINES


def test_functions_are_short(texts: Mapping[str, str], package: Mapping[str, ast.Module]) -> None:
    sizes: dict[str, int] = {}
    for path, tree in package.items():
        code = code_lines_of(texts[path])
        sizes |= {f"{path}:{one.lineno} {one.name}": num_code_lines(one, code) for one in functions(tree)}
    found = [f"{place}: {lines}" for place, lines in sizes.items() if lines > FUNCTION_LINES]
    assert found == [], "\n".join(found)
    assert percentile_90(list(sizes.values())) <= FUNCTION_LINES_P90


def over(limit: int, measure: Callable[[Function], int], package: Mapping[str, ast.Module]) -> list[str]:
    """Return the functions for which a measure exceeds its limit, each with the size found."""
    sizes = [(path, one, measure(one)) for path, tree in package.items() for one in functions(tree)]
    return [f"{path}:{one.lineno} {one.name}: {size}" for path, one, size in sizes if size > limit]


def test_blocks_are_shallow(package: Mapping[str, ast.Module]) -> None:
    found = over(NESTING, nesting, package)
    assert found == [], "\n".join(found)


def test_functions_take_few_arguments(package: Mapping[str, ast.Module]) -> None:
    found = over(ARGUMENTS, num_arguments, package)
    assert found == [], "\n".join(found)


def test_classes_have_few_methods(package: Mapping[str, ast.Module]) -> None:
    classes = [(path, cls) for path, tree in package.items() for cls in ast.walk(tree) if isinstance(cls, ast.ClassDef)]
    found = [f"{path} {cls.name}: {num_methods(cls)}" for path, cls in classes if num_methods(cls) > METHODS]
    assert found == [], "\n".join(found)


def test_the_config_is_small() -> None:
    roots = compose.CONFIGS.values()
    keys = {key for root in roots for key in leaves(root)}
    assert {"seed", "task.max_source_tokens", "optim.lr", "checkpoint"} <= keys
    assert len(keys) <= CONFIG_LEAVES


# The checkers themselves, on planted text.

PLANTED = textwrap.dedent('''
    class Planted:
        """Two methods."""

        def counted(self, a, /, b, *rest, c, d=1, **more):
            """Five lines of code

            in eleven."""
            # a comment

            text = """one statement,
            two lines"""

            return (text,
                    a)

        @classmethod
        def deep(cls):
            for a in b:
                if a:
                    try:
                        with a:
                            while a:
                                pass
                    except ValueError:
                        pass

    def shallow(a):
        if a == 1:
            pass
        elif a == 2:
            pass
        elif a == 3:
            pass
        else:
            for b in a:
                pass

        def inner():
            if a:
                if b:
                    if c:
                        pass
''')


@pytest.fixture
def planted() -> dict[str, Function]:
    return {function.name: function for function in functions(ast.parse(PLANTED))}


def test_code_lines_leave_out_docstrings_blanks_and_comments(planted: dict[str, Function]) -> None:
    assert num_code_lines(planted["counted"], code_lines_of(PLANTED)) == 5


def test_nesting_counts_blocks_and_not_elif_or_with(planted: dict[str, Function]) -> None:
    assert {name: nesting(function) for name, function in planted.items()} == {
        "counted": 0,
        "deep": 4,
        "shallow": 2,
        "inner": 3,
    }


def test_arguments_count_keyword_only_ones_and_not_self(planted: dict[str, Function]) -> None:
    assert [num_arguments(planted[name]) for name in ("counted", "deep", "shallow")] == [4, 0, 1]


def test_methods_are_counted() -> None:
    [cls] = [node for node in ast.parse(PLANTED).body if isinstance(node, ast.ClassDef)]
    assert num_methods(cls) == 2


@pytest.mark.parametrize(("values", "expected"), [([], 0), ([7], 7), ([*range(1, 11)], 9), ([1] * 9 + [99], 1)])
def test_percentile_90(values: list[int], expected: int) -> None:
    assert percentile_90(values) == expected


def test_leaves_have_full_keys() -> None:
    inner = dataclasses.make_dataclass("Inner", [("b", int), ("c", str)])
    outer = dataclasses.make_dataclass("Outer", [("a", int), ("inner", inner)])
    assert list(leaves(outer)) == ["a", "inner.b", "inner.c"]
