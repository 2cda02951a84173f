#!/usr/bin/env bash
# Says what is missing on this machine before anything is installed. Rust is not asked for: see with_rust.sh.
set -euo pipefail
python=${1:-python3}
missing=0
say() { printf 'tokenwire: %s\n' "$1" >&2; missing=1; }

if ! command -v "$python" >/dev/null; then
  say "$python is missing: install Python 3.11 or newer, or name yours: make PYTHON=/path/to/python3.12 ..."
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  say "$("$python" --version) is too old: install Python 3.11 or newer, or name yours: make PYTHON=python3.12 ..."
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  say "$python cannot create virtual environments: install its venv package (Debian and Ubuntu: apt install python3-venv)"
fi
if ! command -v cc >/dev/null; then
  say "no C compiler: install one (Debian and Ubuntu: apt install gcc; macOS: xcode-select --install)"
fi
exit "$missing"
