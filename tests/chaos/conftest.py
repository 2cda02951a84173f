import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "grpc"))

from chaos_service import Front


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    """Starts fronts; all are gone at the end."""
    fronts: list[Front] = []

    def start(options: dict[str, Any] | None = None, **settings: Any) -> Front:
        fronts.append(Front(tmp_path, options, **settings))
        return fronts[-1]

    yield start
    for each in fronts:
        each.close()
