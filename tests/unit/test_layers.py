"""The one layer rule that import-linter cannot see, because the extension is no Python source."""

import ast
from pathlib import Path

import tokenwire.model

MODEL = Path(next(iter(tokenwire.model.__path__)))


def imported_names(source: str) -> set[str]:
    """Every module and name that a source imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def test_an_import_of_the_extension_is_noticed() -> None:
    for source in ("from tokenwire import _native", "import tokenwire._native", "from tokenwire._native import pad"):
        assert any("_native" in name for name in imported_names(source))


def test_the_model_layer_does_not_know_the_extension() -> None:
    sources = list(MODEL.rglob("*.py"))
    assert sources
    for path in sources:
        assert not any("_native" in name for name in imported_names(path.read_text())), path
