"""The Dockerfile as stages of instructions."""

import re
from dataclasses import dataclass, field

from deployment_settings import DEPLOY

DOCKERFILE = DEPLOY / "Dockerfile"


@dataclass
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all_of(self, kind: str) -> list[str]:
        return [text for name, text in self.instructions if name == kind]


def read_stages() -> dict[str, Stage]:
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text())
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage = None
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        kind, _, rest = line.partition(" ")
        if kind == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(name, re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base))
        elif stage is None:
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            stage.instructions.append((kind, rest))
    return stages


STAGES = read_stages()


def lineage(name: str) -> list[Stage]:
    """A stage and those that it is made from, the first one first."""
    stage = STAGES[name]
    return [*(lineage(stage.base) if stage.base in STAGES else ()), stage]


def environment_of(name: str) -> dict[str, str]:
    pairs = [pair for stage in lineage(name) for text in stage.all_of("ENV") for pair in text.split()]
    return dict(pair.split("=", 1) for pair in pairs)
