"""Run every measurement and write what it printed into `bench/README.md`.

    python -m bench [NAME ...]

Each runs in a process of its own, so that none inherits threads or memory from another. With names, only their
sections are renewed.
"""

import datetime
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bench import report

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "bench" / "README.md"


class Section(NamedTuple):
    """One measurement: its module in `bench` and the heading of its results."""

    module: str
    title: str


SECTIONS = [
    Section("generation", "Generation through the service, beside transformers.generate"),
    Section("fairness", "The pauses of streams while a long prompt arrives, with prefill paced and not"),
    Section("forward", "The forward pass alone, beside transformers.generate"),
    Section("sampler", "The sampler per row, beside transformers' processors"),
    Section("pipeline", "What settings cost the sampler"),
    Section("strategies", "Beams beside sampled sequences, and prompt lookup beside plain decoding"),
    Section("text", "Text, beside the tokenizers package"),
    Section("engine_overhead", "The engine's own time per step, with a model that does nothing"),
    Section("front", "Streamed messages through the front, with an engine that does nothing"),
    Section("startup", "Start-up time and resident memory, beside bare imports"),
]


def run(section: Section) -> str:
    """The Markdown that the measurement prints."""
    command = [sys.executable, "-m", f"bench.{section.module}"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def replace(page: str, section: Section, results: str) -> str:
    """The page with the text between the section's markers replaced."""
    begin, end = f"<!-- {section.module} -->", f"<!-- /{section.module} -->"
    body = f"{begin}\n## {section.title}\n\n`python -m bench.{section.module}`\n\n{results}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: body, page) if pattern.search(page) else f"{page.rstrip()}\n\n{body}\n"


def main() -> None:
    """Run the sections named on the command line, or all."""
    wanted = sys.argv[1:] or [section.module for section in SECTIONS]
    unknown = set(wanted) - {section.module for section in SECTIONS}
    if unknown:
        sys.exit(f"no such measurement: {', '.join(sorted(unknown))}")
    stamp = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {report.cpu_features()}"
    for section in SECTIONS:
        if section.module in wanted:
            print(f"==> {section.title}", file=sys.stderr, flush=True)
            PAGE.write_text(replace(PAGE.read_text(), section, f"Measured {stamp}.\n\n{run(section)}"))


if __name__ == "__main__":
    main()
