"""Who may import whom, and the rules of the house that a machine can check."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "search_spaces", "trainables")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# A package imports from those to its left, never from one of its own group or to its right.
ORDER = (
    ("trainables",),
    ("search_spaces",),
    ("clock", "errors", "processes", "redaction", "threads"),
    ("command",),
    ("storage",),
    ("ledger", "data"),
    ("plan", "tracking"),
    ("search", "predict"),
    ("execution", "report", "verify"),
    ("sweep", "spot", "aws"),
)
# The only files or folders that may import a library.
IMPORTERS = {
    "ray": ("orchestrator/execution/",),
    "mlflow": (
        "orchestrator/tracking/",
        "orchestrator/predict/mlflow_model.py",  # saves and loads models in MLflow's format
        "orchestrator/verify/mlflow_checks.py",  # reads back what tracking wrote
    ),
    "optuna": ("orchestrator/search/sampler.py", "search_spaces/"),
    # MLflow has no command to create its database, nor to change where it keeps artifacts.
    "sqlite3": ("orchestrator/ledger/", "orchestrator/tracking/database.py"),
}
MAY_PRINT = {
    "orchestrator/aws.py",
    "orchestrator/command.py",
    "orchestrator/data/__main__.py",
    "orchestrator/ledger/snapshot.py",  # on stderr: that a storage cannot be reached
    "orchestrator/predict/__main__.py",
    "orchestrator/report/__main__.py",
    "orchestrator/spot.py",
    "orchestrator/sweep/__main__.py",
    "orchestrator/sweep/driver.py",
    "orchestrator/sweep/opening.py",
}
LONGEST_FUNCTION = 70  # lines
LONG_BY_DESIGN = {("trainables/training/loop.py", "fit")}  # training, readable from top to bottom


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), filename=name)


def imported(name: str) -> set[str]:
    """Return every module that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(name: str) -> set[str]:
    return {module.partition(".")[0] for module in imported(name)}


def functions(
    node: ast.AST, *, public: bool = True
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, bool]]:
    """Yield functions and classes, and whether each and all around it have public names.

    What is defined inside a function is nobody's interface.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            is_public = public and not child.name.startswith("_")
            yield child, is_public
            inside = is_public and isinstance(child, ast.ClassDef)
            yield from functions(child, public=inside)
        else:
            yield from functions(child, public=public)


def test_there_is_something_to_check() -> None:
    assert len(FILES) >= 30
    assert {
        "orchestrator/sweep/driver.py",
        "trainables/training/loop.py",
        "search_spaces/space.py",
    } <= set(NAMES)


def dotted(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def package(module: str) -> str:
    """Return the place of a dotted module in `ORDER`: its package, or a module of its own."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "orchestrator" and rest else first


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_one_way(name: str) -> None:
    rank = {member: place for place, group in enumerate(ORDER) for member in group}
    own = package(dotted(name))
    others = {package(module) for module in imported(name) if module.partition(".")[0] in PACKAGES}
    assert {other for other in others - {own, "orchestrator"} if rank[other] >= rank[own]} == set()
    assert "tests" not in tops(name)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports at the top of a module alone: those inside functions run later."""
    modules = {dotted(name) for name in NAMES}
    graph = {
        dotted(name): {
            found
            for node in tree(name).body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
            for found in {node.module, f"{node.module}.{alias.name}"} & modules
        }
        for name in NAMES
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names a circle
    assert set(order) == modules


@pytest.mark.parametrize("library", IMPORTERS)
def test_a_library_is_imported_in_its_own_place_only(library: str) -> None:
    importing = [name for name in NAMES if library in tops(name)]
    assert importing
    assert [name for name in importing if not name.startswith(IMPORTERS[library])] == []


def test_a_package_imports_nothing_when_it_is_imported() -> None:
    for name in NAMES:
        if name.endswith("/__init__.py") and not name.startswith("search_spaces/"):
            assert [ast.unparse(node) for node in tree(name).body[1:]] == [], name


def test_a_trials_process_imports_no_optuna_no_mlflow_and_no_search() -> None:
    code = (
        "import sys, orchestrator.execution.worker, orchestrator.execution.group\n"
        "unwanted = ('optuna', 'mlflow', 'orchestrator.search', 'orchestrator.sweep')\n"
        "print([name for name in unwanted if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_orchestrator_knows_no_tensor() -> None:
    libraries = {"torch", "torchvision", "timm", "safetensors"}
    importing = {
        name: found
        for name in NAMES
        if name.startswith("orchestrator/") and (found := tops(name) & libraries)
    }
    # What sets a trial's process up: its memory limit, its rank, the errors of its device.
    worker_side = {
        f"orchestrator/execution/{name}.py" for name in ("worker", "group", "failure_class")
    }
    assert set(importing) == worker_side


@pytest.mark.parametrize("name", NAMES)
def test_only_the_commands_print(name: str) -> None:
    lines = [
        node.lineno
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
    ]
    assert lines == [] or name in MAY_PRINT


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_has_a_docstring(name: str) -> None:
    module = tree(name)
    assert ast.get_docstring(module)
    missing = [
        f"{name}:{node.lineno} {node.name}"
        for node, public in functions(module)
        if public and not ast.get_docstring(node)
    ]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_short(name: str) -> None:
    too_long = [
        f"{name}:{node.lineno} {node.name}: {length} lines"
        for node, _ in functions(tree(name))
        if not isinstance(node, ast.ClassDef)
        and (name, node.name) not in LONG_BY_DESIGN
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert too_long == []


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_module_does_nothing_but_define(name: str) -> None:
    """No statement at the top is a bare call, and none touches logging, warnings or the process."""
    bare = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for node in tree(name).body
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    ]
    assert bare == []
    loops = [
        f"{name}:{node.lineno}"
        for node in tree(name).body
        if isinstance(node, ast.For | ast.While | ast.With | ast.Try)
        or (isinstance(node, ast.If) and not _is_main_guard(node) and not _is_typing(node))
    ]
    assert loops == []
    assigned = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for node in tree(name).body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    ]
    assert assigned == []


def _is_typing(node: ast.If) -> bool:
    return ast.unparse(node.test) == "TYPE_CHECKING"


def test_no_module_configures_logging_for_everyone() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name in NAMES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.basicConfig"
    ]
    assert found == []


def test_importing_the_planning_side_changes_no_global_setting() -> None:
    code = (
        "import logging, os, sys, warnings\n"
        "before = dict(os.environ), list(logging.root.handlers), logging.root.level\n"
        "import orchestrator.search.scheduler, orchestrator.tracking.tracker\n"
        "import orchestrator.sweep.display, orchestrator.sweep.__main__\n"
        "import orchestrator.ledger.retention, search_spaces.digits\n"
        "import orchestrator.data.__main__\n"
        "after = dict(os.environ), list(logging.root.handlers), logging.root.level\n"
        "import optuna\n"
        "print(before == after, optuna.logging.get_verbosity() == optuna.logging.INFO)\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'timm'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == ["True True", "[]"]


def test_nothing_is_unpickled_but_cifar() -> None:
    """No pickle is ever loaded from storage; CIFAR's go through an unpickler of ours."""
    unpickling = {
        name
        for name in NAMES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("pickle.load", "pickle.loads", "pickle.Unpickler")
    }
    assert unpickling == {"orchestrator/data/sources/cifar.py"}
    assert not any(tops(name) & {"dill", "cloudpickle", "joblib", "shelve"} for name in NAMES)
    for name in NAMES:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert keywords.get("weights_only") == "True", f"{name}:{node.lineno}"


def test_modules_are_not_called_utils() -> None:
    vague = {"utils", "util", "helpers", "misc", "common", "base"}
    assert {Path(name).stem for name in NAMES} & vague == set()
