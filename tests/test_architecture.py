"""The house rules that a tool can't be set to check: which way imports point, what an import loads, sizes."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import localq
import localq.errors

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"__init__", "__main__"},
    {"cli"},
    {"chat", "serve"},
    {"api", "api_measuring", "doctor"},
    {"calibrating"},
    {"measure", "conversation", "importing", "batching"},
    {"model"},
    {"conversion"},
    {"calibration"},
    {"store"},
    {"generation", "memory", "context_length", "structured"},
    {"text", "engines", "checkpoint", "families", "turns", "fairness"},
    {"json_files", "tables", "gguf_file", "options", "reference", "demo", "backends", "transcript"},
    {"trial"},
    {"recipes", "llama_log", "child_process", "disk", "copying", "hardware", "keywords", "notebook", "regular_files"},
    {"engine_thread"},
    {"errors", "version"},
]
"""From top to bottom; a module imports from lower layers, from its own package, and as SIDEWAYS says."""

SIDEWAYS = {("checkpoint", "families"), ("checkpoint", "text")}
HUB_CLIENT = {("checkpoint", "hub"), ("checkpoint", "hub_errors"), ("checkpoint", "hub_transfer")}
SHARED_BY_ENGINES = {"base"}
HEAVY = {
    "numpy",
    "mlx",
    "mlx_lm",
    "llama_cpp",
    "transformers",
    "huggingface_hub",
    "jinja2",
    "rich",
    "gguf",
    "tokenizers",
    "torch",
    "sentencepiece",
    "psutil",
    "prompt_toolkit",
    "tqdm",
    "pygments",
    "starlette",
    "uvicorn",
    "llguidance",
}
LONGEST_FILE_LINES, LONGEST_FUNCTION_LINES, MOST_PARAMETERS = 400, 50, 6


def is_script(file: Path) -> bool:
    """Whether it is run by hand, with dependencies of its own, and imported by nothing."""
    return file.parent.name == "demo" and file.stem not in ("__init__", "questions")


FILES = sorted((ROOT / "localq").rglob("*.py"))
MODULES = [pytest.param(file, id=file.relative_to(ROOT).as_posix()) for file in FILES]
LIBRARY = [pytest.param(file, id=file.relative_to(ROOT).as_posix()) for file in FILES if not is_script(file)]


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def parts_of(file: Path) -> tuple[str, ...]:
    """("engines", "mlx") of localq/engines/mlx.py."""
    parts = file.relative_to(ROOT / "localq").with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST) -> Iterator[str]:
    """Every module that is imported at run time, inside functions as well, with the names taken from it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif is_for_types_only(child):
            yield from (name for branch in child.orelse for name in imports(branch))  # type: ignore[attr-defined]
        else:
            yield from imports(child)


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("file", LIBRARY)
def test_imports_point_down(file: Path) -> None:
    here = parts_of(file)
    for name in imports(tree_of(file)):
        target = name.split(".")[1:]
        if not name.startswith("localq.") or target[0] in {here[0], "__version__"}:
            continue
        if here == ("__init__",):
            continue  # resolves its names on first use
        down = layer_of(here[0]) < layer_of(target[0]) or (here[0], target[0]) in SIDEWAYS
        assert down, f"{'.'.join(here)} imports {name}"


@pytest.mark.parametrize("file", [file for file in FILES if parts_of(file)[0] == "engines"], ids=lambda file: file.name)
def test_engines_do_not_know_each_other(file: Path) -> None:
    family = file.stem.partition("_")[0]  # mlx.py and mlx_sampling.py are one engine
    for name in imports(tree_of(file)):
        if name.startswith("localq.engines."):
            target = name.split(".")[2]
            assert target in SHARED_BY_ENGINES or target.partition("_")[0] == family, f"{file.name} imports {name}"


def test_every_part_of_the_house_has_a_layer() -> None:
    known = set().union(*LAYERS)
    assert {parts_of(file)[0] for file in FILES} == known


@pytest.mark.parametrize("file", LIBRARY)
def test_only_the_hub_client_imports_huggingface_hub(file: Path) -> None:
    imported = {name.split(".")[0] for name in imports(tree_of(file))}
    assert "huggingface_hub" not in imported or parts_of(file) in HUB_CLIENT


@pytest.mark.parametrize("file", LIBRARY)
def test_only_the_server_imports_starlette_and_uvicorn(file: Path) -> None:
    imported = {name.split(".")[0] for name in imports(tree_of(file))}
    assert not imported & {"starlette", "uvicorn"} or parts_of(file)[0] == "serve"


@pytest.mark.parametrize("file", LIBRARY)
def test_nothing_prints(file: Path) -> None:
    for node in ast.walk(tree_of(file)):
        assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "print"), f"line {node.lineno}"


@pytest.mark.parametrize("file", MODULES)
def test_every_module_says_what_it_is_for(file: Path) -> None:
    assert ast.get_docstring(tree_of(file)) or file.stat().st_size == 0


@pytest.mark.parametrize("file", LIBRARY)
def test_every_public_function_and_class_says_what_it_does(file: Path) -> None:
    top = [node for node in tree_of(file).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    silent = [node.name for node in top if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert silent == []


@pytest.mark.parametrize("file", MODULES)
def test_files_and_functions_are_small(file: Path) -> None:
    name = file.relative_to(ROOT).as_posix()
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE_LINES
    for function in functions(file):
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno < LONGEST_FUNCTION_LINES, function.name
        given = function.args
        parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        counted = [parameter for parameter in parameters if parameter.arg not in ("self", "cls")]
        assert name.startswith("localq/cli/") or len(counted) <= MOST_PARAMETERS, function.name


def in_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


LOADED = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def test_importing_localq_loads_no_heavy_library() -> None:
    loaded = set(in_fresh_process(f"import sys, localq; {LOADED}").split())
    assert "localq" in loaded
    assert loaded & HEAVY == set()


def test_importing_localq_loads_none_of_its_packages() -> None:
    loaded = in_fresh_process("import sys, localq; print(*[name for name in sys.modules if name.startswith('localq')])")
    assert set(loaded.split()) == {"localq", "localq.version"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["chat", "--help"], ["ls"]])
def test_help_and_lists_load_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    given = ["localq", *arguments, *(["--models-dir", str(tmp_path)] if arguments == ["ls"] else [])]
    code = (
        f"import sys; sys.argv = {given!r}\nfrom localq.cli.main import main\ntry: main()\nexcept SystemExit: {LOADED}"
    )
    loaded = set(in_fresh_process(code).splitlines()[-1].split())
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def test_public_names_are_sorted_complete_and_there() -> None:
    assert localq.__all__ == sorted(localq.__all__)
    typed = {
        alias.asname
        for node in tree_of(ROOT / "localq" / "__init__.py").body
        if is_for_types_only(node)
        for statement in node.body  # type: ignore[attr-defined]
        for alias in statement.names
    }
    assert set(localq.__all__) == typed | {"__version__"}
    assert set(localq._HOMES) == typed
    for name in localq.__all__:
        assert not isinstance(getattr(localq, name), types.ModuleType), name
    with pytest.raises(AttributeError, match="'nonsense'"):
        _ = localq.nonsense


@pytest.mark.parametrize("first", ["localq.load", "import localq.conversion.convert", "import localq.cli.main", "pass"])
def test_a_public_name_is_never_the_package_of_the_same_name(first: str) -> None:
    names = ", ".join(f"localq.{name}" for name in localq.__all__)
    kinds = f"print(*[type(value).__name__ for value in ({names})])"
    code = f"import localq\n{first}\n{kinds}\nfrom localq.conversion import gguf"
    assert "module" not in in_fresh_process(code).split()


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawn = []
    for line in (localq.errors.__doc__ or "").splitlines():
        name = line.split()[0] if line.split() else ""
        if name.endswith("Error"):
            drawn.append(((len(line) - len(line.lstrip())) // 2 - 2, name))
    parents: list[str] = []
    for depth, name in drawn:
        kind = getattr(localq.errors, name)
        parents = [*parents[:depth], name]
        assert [base.__name__ for base in kind.__mro__ if issubclass(base, localq.errors.LocalqError)] == parents[::-1]
    classes = [name for name, value in vars(localq.errors).items() if isinstance(value, type)]
    assert sorted(name for _, name in drawn) == sorted(classes)


@pytest.mark.parametrize("file", LIBRARY)
def test_errors_are_those_of_the_tree(file: Path) -> None:
    # Caught in the same module, asked for by Python, or of a system call that Python does not have.
    internal = {"ValueError", "AttributeError", "SecurityError", "OSError"}
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            known = name in internal or hasattr(localq.errors, name) or not name.endswith("Error")
            assert known or name == "as_localq_error", f"{name}, line {node.lineno}"


def test_every_module_can_be_imported() -> None:
    for file in FILES:
        if not is_script(file) and file.stem != "__main__":
            importlib.import_module(".".join(("localq", *parts_of(file))).removesuffix(".__init__"))


def test_the_code_map_names_every_room_and_nothing_that_is_gone() -> None:
    code_map = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    paths = [line.split()[0] for line in code_map.splitlines() if line.strip()]
    assert len(paths) == len(set(paths))
    assert [path for path in paths if not (ROOT / path).exists()] == []
    inside = [file.relative_to(ROOT / "localq") for file in FILES]
    rooms = {f"localq/{file.parts[0]}" + ("/" if len(file.parts) > 1 else "") for file in inside}
    assert sorted(rooms - {"localq/__init__.py", "localq/__main__.py"} - set(paths)) == []
