"""The hand's files run on any python3 from 3.8, with nothing but its standard library."""

import ast
import sys
from pathlib import Path

import galley_sandbox
import pytest
from galley_sandbox import staging

PACKAGE = Path(galley_sandbox.__file__).parent
FILES = sorted(name for name in staging.contents() if name.endswith(".py"))


@pytest.mark.parametrize("name", FILES)
def test_its_syntax_is_old_enough(name: str) -> None:
    ast.parse((PACKAGE.parent / name).read_bytes(), feature_version=(3, 8))


@pytest.mark.parametrize("name", FILES)
def test_it_imports_only_the_standard_library_and_what_is_laid_out_with_it(name: str) -> None:
    for node in ast.walk(ast.parse((PACKAGE.parent / name).read_bytes())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            top = module.partition(".")[0]
            assert top in sys.stdlib_module_names or is_laid_out(module), f"{name} imports {module}"


def is_laid_out(module: str) -> bool:
    path = module.replace(".", "/")
    return f"{path}.py" in FILES or f"{path}/__init__.py" in FILES


@pytest.mark.parametrize("name", [name for name in FILES if name != "galley_sandbox/__init__.py"])
def test_its_annotations_are_not_evaluated(name: str) -> None:
    """Newer notations, as `int | None`, are fine in annotations that old pythons never look at."""
    source = (PACKAGE.parent / name).read_text()
    has_code = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(source)))
    assert not has_code or "from __future__ import annotations" in source
