"""Who may import whom: models never import Gradio, tabs import no deep learning library at the start."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    "torch",
    "torchvision",
    "torchaudio",
    "diffusers",
    "transformers",
    "supervision",
    "trackers",
    "scipy",
    "ray",
}


def imports(path: Path, *, at_import_only: bool) -> set[str]:
    """Top-level packages that a file imports; with `at_import_only`, not those inside functions."""
    found: set[str] = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_import_only):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def _nodes(node: ast.AST, at_import_only: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_import_only and (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _type_checking(child)):
            continue
        yield child
        yield from _nodes(child, at_import_only)


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("models"), ids=str)
def test_models_never_import_gradio_or_the_tabs(path):
    assert not imports(path, at_import_only=False) & {"gradio", "gradio_client", "demos", "app"}


@pytest.mark.parametrize("path", [*files("demos"), ROOT / "app.py"], ids=str)
def test_tabs_import_nothing_heavy(path):
    assert not imports(path, at_import_only=True) & HEAVY


@pytest.mark.parametrize("name", ["errors", "runtime", "weights"])
def test_the_shared_models_modules_import_torch_when_used(name):
    assert not imports(ROOT / f"models/{name}.py", at_import_only=True) & HEAVY


def test_building_the_whole_app_loads_nothing_heavy():
    """The same by running it: every tab imported and built, in a fresh process."""
    script = (
        "import sys, importlib, pathlib, app\n"
        "for path in sorted(pathlib.Path('demos').glob('*.py')):\n"
        "    importlib.import_module('demos.' + path.stem)\n"
        "app.build_app(app.parse_options([]))\n"
        f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout


def test_the_models_side_needs_no_gradio():
    script = (
        "import sys, models.errors, models.runtime, models.weights\n"
        "print(sorted(set(sys.modules) & {'gradio', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
