"""The shape of the code: imports point downwards, functions stay small, what needs no torch imports none, names are frozen."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import depthscope

SOURCE = Path(depthscope.__file__).parent
LAYERS = [
    {"cli"},
    {"explore"},
    {"api"},
    {"progress"},
    {"report"},
    {"studies"},
    {"exports"},
    {"stages"},
    {"experiments"},
    {"run"},
    {"engine"},
    {"data"},
    {"models"},
    {"statistics"},
    {"shapes"},
    {"schema"},
    {"edits"},
    {"edit_registry"},
    {"routes"},
    {"untrusted"},
    {"printable"},
    {"errors", "allocator"},
]
"""Highest first: a module may import from layers below its own, and from its own package."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def package(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize(
    "file", [file for file in FILES if package(file) != "__init__"], ids=lambda f: f.as_posix()[-30:]
)
def test_imports_point_downwards(file):
    own = package(file)
    used = {name.split(".")[1] for name in imported(file) if name.startswith("depthscope.")} & RANK.keys()
    assert all(RANK[name] > RANK[own] or name == own for name in used), f"{own} imports {used}"


def test_every_module_has_its_layer():
    assert {package(file) for file in FILES} - {"__init__"} == RANK.keys()


def test_only_models_know_transformers_and_nothing_knows_what_it_must_not():
    for file in FILES:
        names = {name.split(".")[0] for name in imported(file)}
        if package(file) not in ("models", "cli"):
            assert "transformers" not in names, file
        if package(file) in ("routes", "edit_registry", "edits", "schema", "errors", "run", "report"):
            assert "torch" not in names, file


def test_only_one_module_imports_the_harness():
    importing = {
        file.relative_to(SOURCE).as_posix()
        for file in FILES
        if any(name.split(".")[0] == "lm_eval" for name in imported(file))
    }
    assert importing == {"experiments/task_harness.py"}


def test_only_one_module_imports_ray():
    importing = {
        file.relative_to(SOURCE).as_posix()
        for file in FILES
        if any(name.split(".")[0] == "ray" for name in imported(file))
    }
    assert importing == {"run/ray_runner.py"}


def test_only_one_module_imports_fsspec():
    importing = {
        file.relative_to(SOURCE).as_posix()
        for file in FILES
        if any(name.split(".")[0] == "fsspec" for name in imported(file))
    }
    assert importing == {"run/remote.py"}


def test_only_one_module_registers_hooks():
    registering = {file.relative_to(SOURCE).as_posix() for file in FILES if ".register_forward" in file.read_text()}
    assert registering == {"models/hooks.py"}, (
        "hooks are removed in one place, whatever happens: use models.hooks.hooked"
    )


@pytest.mark.parametrize(
    "module", ["routes", "edits", "schema", "errors", "run.store", "report.page", "report.figures", "cli", "cli.report"]
)
def test_what_needs_no_torch_imports_none(module):
    code = f"import sys, depthscope.{module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_functions_stay_small():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 65, f"{file}: {node.name}"


def test_public_names_are_frozen():
    assert depthscope.__all__ == [
        "DepthscopeError",
        "Edit",
        "Experiment",
        "LayerSweep",
        "LensKind",
        "Measure",
        "Metric",
        "Option",
        "Route",
        "Series",
        "Study",
        "Table",
        "convert_lens",
        "corpus",
        "drop",
        "drop_attn",
        "drop_head",
        "drop_mlp",
        "drop_neuron",
        "drop_ple",
        "drop_ssm",
        "evaluate",
        "exchange",
        "export",
        "generate",
        "generate_stream",
        "heal",
        "lens",
        "load",
        "logits",
        "loop",
        "mean_ablate_head",
        "mean_ablate_neuron",
        "measure",
        "parallel",
        "parse_edit",
        "parse_route",
        "prune",
        "reference",
        "register_edit",
        "register_experiment",
        "register_lens",
        "register_measure",
        "repeat",
        "repeat_middle",
        "repeat_range",
        "resample_ablate_head",
        "resample_ablate_neuron",
        "reverse",
        "shuffle",
        "speed",
        "study",
        "study_recipe",
        "study_revisions",
        "swap",
        "tune_lens",
        "unregister_edit",
        "unregister_experiment",
        "unregister_lens",
        "unregister_measure",
    ]
    assert all(getattr(depthscope, name).__doc__ for name in depthscope.__all__)
    with pytest.raises(AttributeError, match="no attribute 'melt'"):
        depthscope.melt  # noqa: B018
