"""The layout that CONTRIBUTING.md describes: faces of folders, and names that stand for one thing each."""

import ast
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mscale", "mixtures", "sweeps", "analysis")
FOLDERS = sorted(
    init.parent.relative_to(ROOT)
    for package in PACKAGES
    for init in (ROOT / package).rglob("*/__init__.py")
    if init.parent != ROOT / package
    if init.parent.name != "commands"  # the top: nothing imports from it
)
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# One name for one act of every package or executor, by design.
SHARED_NAMES = {"main", "run", "dry_run", "cancel", "Options"}


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def face(folder: Path) -> list[str]:
    for node in parsed(folder / "__init__.py").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_face_has_at_most_ten_names_and_the_rest_is_protected(folder):
    shown = face(folder)
    assert 0 < len(shown) <= 10
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    protected = {module for one in contracts for module in one.get("protected_modules", ())}
    for path in (ROOT / folder).glob("*.py"):
        module = ".".join((*folder.parts, path.stem))
        assert path.stem in ("__init__", *shown) or module in protected, (
            f"{module} is neither on the face of {folder} nor protected in pyproject.toml"
        )
        assert not (path.stem in shown and module in protected), f"{module} is both"


def public_names() -> dict[str, set[str]]:
    """Public top-level functions, classes and constants, by name; commands and faces are not counted."""
    found = defaultdict(set)
    for path in MODULES:
        if "commands" in path.parts or path.stem in ("commands", "__init__", "__main__"):
            continue
        for name in defined(parsed(path)):
            if not name.startswith("_"):
                found[name].add(str(path))
    return found


def defined(node: ast.AST) -> set[str]:
    """Names that a module binds at its top level, also inside `if` and `try`, but not those it imports."""
    names: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(child.name)
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            names |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            names |= defined(child)
    return names


def test_no_public_name_is_defined_in_two_modules():
    twice = {name: paths for name, paths in public_names().items() if len(paths) > 1}
    assert {name: paths for name, paths in twice.items() if name not in SHARED_NAMES} == {}


# What a user calls in a notebook or a gin file, and commands, whose parameters are their options.
PUBLIC_FACES = {
    "analysis/fitting/fit.py:fit",
    "analysis/study/analyse.py:analyse_tables",
    "analysis/transfer/table.py:transfer_table",
    "analysis/validation/power.py:power",
    "analysis/validation/simulate.py:draw_observations",
    "mixtures/packing/pack.py:pack",
    "mixtures/synthetic/generate.py:generate",
    "mixtures/train_vocabulary.py:train_vocabulary",
    "mscale/data/mixture.py:resolve",
    "mscale/training/optimizer.py:hyper",
    "sweeps/grid.py:cells",
    "sweeps/grid.py:study",
}


def test_no_function_has_more_than_eight_parameters():
    many = []
    for path in MODULES:
        if "commands" in path.parts or path.stem == "commands":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                listed = (*given.posonlyargs, *given.args, *given.kwonlyargs)
                names = [argument.arg for argument in listed]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                if count > 8 and f"{path}:{node.name}" not in PUBLIC_FACES:
                    many.append((count, f"{path}:{node.name}"))
    assert many == []
    assert {f"{path}:{name}" for path in MODULES for name in defined(parsed(path))} >= PUBLIC_FACES
