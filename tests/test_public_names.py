"""The public names: lazy, the same for type checkers, and never shadowed by modules of the same name."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import tfprune


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(tfprune.__file__).read_text())
    typed = {
        (alias.asname or alias.name, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfprune.")
        for alias in node.names
    }
    assert typed == {(name, f"tfprune.{home}") for name, home in tfprune._HOMES.items()}
    assert set(tfprune.__all__) == set(tfprune._HOMES)


def test_every_name_is_there_and_documented():
    assert len(tfprune.__all__) <= 20
    for name in tfprune.__all__:
        assert getattr(tfprune, name).__doc__, name


def test_a_module_never_hides_the_function_of_its_name():
    for name, home in tfprune._HOMES.items():
        importlib.import_module(f"tfprune.{home}")
        assert callable(getattr(tfprune, name)), name


def test_importing_tfprune_imports_no_framework():
    code = "import tfprune, sys; print([m for m in ('keras', 'tensorflow', 'onnx', 'matplotlib') if m in sys.modules])"
    root = Path(tfprune.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout.strip() == "[]"


def test_modules_with_values_of_their_own_need_no_import_statement():
    assert tfprune.sparse.GroupLasso(0.1).strength == 0.1
    code = "import tfprune; print(tfprune.schedules.Linear(0.0, 0.5, 4)(2))"
    root = Path(tfprune.__file__).parents[1]
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout.strip() == "0.25"
    )
