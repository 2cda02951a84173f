"""What a deployment may set: the settings of `tokenwire serve` by their environment variables."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from tokenwire.config import ServiceConfig

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"

OTHER_VARIABLES = {"TOKENWIRE_CACHE"}
"""What is no setting of `tokenwire serve` but read elsewhere."""


def setting_names() -> set[str]:
    """Every environment variable that `tokenwire serve` takes a setting from."""
    parts: dict[str, Any] = get_type_hints(ServiceConfig)
    return {f"TOKENWIRE_{field.name.upper()}" for part in parts.values() for field in fields(part)}


def unknown_settings(variables: set[str]) -> set[str]:
    """Those of ``variables`` that look like settings and are none."""
    return {name for name in variables if name.startswith("TOKENWIRE_")} - setting_names() - OTHER_VARIABLES
