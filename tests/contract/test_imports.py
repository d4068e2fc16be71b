"""Import arrows go one way: what a layer may know of the package, and of the heavy libraries."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fusion_bench

ROOT = Path(fusion_bench.__file__).parent
HEAVY = {"torch", "transformers", "datasets", "peft", "scipy", "numpy", "pandas", "pyarrow"}

# Layer -> the layers (first-level names) it may import anywhere, functions included.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "build": {"errors"},
    "progress": set(),
    "settings": set(),
    "parallel": set(),
    "ops": {"errors"},
    "checkpoint": {"errors", "progress", "parallel"},
    "fitting": {"progress", "checkpoint", "method"},
    "method": {
        "errors",
        "build",
        "ops",
        "checkpoint",
        "progress",
        "parallel",
        "api",
        "settings",
        "fitting",
        "statistics",
    },
    "statistics": {"errors", "build", "ops", "checkpoint", "progress", "parallel", "fitting"},
    "family": {"errors", "checkpoint", "progress", "settings", "parallel"},
    "modelpool": {"errors", "build", "checkpoint", "family", "zoo"},
    "taskpool": {"errors", "build", "checkpoint", "family", "progress", "settings", "zoo", "parallel", "fitting"},
    "zoo": {"errors", "progress", "taskpool", "settings", "checkpoint", "family"},
    "mergekit": {"errors", "build", "checkpoint", "family", "method", "modelpool", "progress"},
    "report": {"errors", "cli", "checkpoint"},
    "adapter": {"errors", "build", "checkpoint", "family", "method", "ops", "parallel", "progress", "settings", "api"},
    "api": {"errors", "checkpoint", "family", "method", "modelpool", "progress", "settings", "fit", "fitting"},
    "fit": {
        "errors",
        "checkpoint",
        "family",
        "method",
        "modelpool",
        "progress",
        "settings",
        "fitting",
        "taskpool",
        "api",
        "parallel",
    },
}
# Modules that may import torch when they are imported: they are reached from inside functions alone.
TORCH_AT_TOP = {"ops", "method.engine", "method.slots", "family.open_clip_tower"}
# Likewise whole packages: what draws images is made of arrays.
ARRAYS_AT_TOP = "zoo.vision."


def modules() -> list[tuple[str, Path]]:
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(part for part in parts if part != "__init__"), file))
    return found


def imports(tree: ast.AST, top_only: bool) -> set[str]:
    """Names imported, ``a.b`` style; what stands under ``if TYPE_CHECKING`` is left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if top_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.add(child.module)
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize(("name", "file"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_arrows(name: str, file: Path) -> None:
    layer = name.split(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if layer in ALLOWED:
        own = {m.split(".")[1] for m in imports(tree, top_only=False) if m.startswith("fusion_bench.")}
        assert own - {layer} <= ALLOWED[layer], f"{name} may not import {sorted(own - {layer} - ALLOWED[layer])}"
    if layer not in TORCH_AT_TOP and name not in TORCH_AT_TOP and not name.startswith(ARRAYS_AT_TOP):
        heavy = {m.split(".")[0] for m in imports(tree, top_only=True)} & HEAVY
        assert not heavy, f"{name} imports {sorted(heavy)} when it is imported; do so inside functions"


def test_the_merge_path_leaves_transformers_out(pool: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from fusion_bench.cli import main\n"
        "words = ['method=ties_merging', 'modelpool=folder']\n"
        f"assert main([*words, 'modelpool.path={pool}', 'save_model={tmp_path}/o']) == 0\n"
        "assert 'torch' in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize(("name", "file"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_files_are_short_and_say_what_for(name: str, file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text)), f"{name} does not say what it is for"
