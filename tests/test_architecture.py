"""Tests that start-up loads nothing heavy and nothing is pickled. Layers are checked by import-linter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("generate", "train", "evaluate")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*sorted((ROOT / "lgclip").rglob("*.py")), *(ROOT / f"{name}.py" for name in SCRIPTS)]
}
LIGHT = {"omegaconf", "lgclip", "lgclip.cli.script"}


def nodes(tree: ast.AST, *, run: bool = True) -> Iterator[ast.AST]:
    """Yields every node, optionally without those that `if TYPE_CHECKING` guards."""
    for node in ast.iter_child_nodes(tree):
        if run and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes(node, run=run)


def imports(tree: ast.AST) -> set[str]:
    """Returns the modules that a tree imports when it runs, at the top or inside a function."""
    modules = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules |= {node.module or ""}
            modules |= {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
    return modules


def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_entry_scripts_import_nothing_heavy(name: str) -> None:
    top = ast.Module([node for node in parsed(name).body if not isinstance(node, ast.FunctionDef)], [])
    assert imports(top) <= LIGHT
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 15, "a script is one call"


@pytest.mark.parametrize("name", FILES)
def test_module_names_are_informative(name: str) -> None:
    assert not {"utils", "util", "common", "helpers", "misc"} & set(name.split("."))


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_pickled(name: str) -> None:
    tree = parsed(name)
    called = {ast.unparse(node.func) for node in nodes(tree, run=False) if isinstance(node, ast.Call)}
    assert not called & {"hasattr", "torch.load", "torch.save", "eval", "exec"}
    assert not imports(tree) & {"pickle", "cPickle", "dill", "joblib", "cloudpickle"}
    allowed = [node for node in nodes(tree) if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]
    assert all(ast.unparse(keyword.value) == "False" for keyword in allowed)


@pytest.mark.slow
def test_help_and_config_load_nothing_heavy() -> None:
    """Checks that only Hydra is loaded, by modules instead of a clock."""
    look = (
        "import runpy, sys\n"
        "calls = 'evaluate.py --help|evaluate.py --cfg job|train.py method=tiny_encoder --help|generate.py --cfg job'\n"
        "for call in calls.split('|'):\n"
        "    sys.argv = call.split()\n"
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as end: assert not end.code, call\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    completed = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, loaded = completed.stdout.splitlines()
    assert "prompts_per_class: 10" in lines, "of Hydra's own, beside other words"
    assert "scales: multi, official_code, paper, single, ten" in lines
    assert "  scales          multi, official_code, paper, *single, ten" in lines
    heavy = {"torch", "lightning", "numpy", "PIL", "diffusers", "transformers", "open_clip", "wandb", "scipy"}
    assert "hydra" in loaded.split()
    assert not heavy & set(loaded.split())
