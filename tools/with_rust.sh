#!/usr/bin/env bash
# Runs a command with cargo on its PATH. Where there is none, maturin's own helper (puccinialin) fetches a toolchain
# once into .cache/rust; nothing outside the checkout changes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if ! command -v cargo >/dev/null; then
  home=$root/.cache/rust
  python=${PYO3_PYTHON:-$root/.venv/bin/python}
  if [ ! -f "$home/env.json" ]; then
    echo "==> no Rust on this machine: fetching a toolchain into .cache/rust" >&2
    "$(dirname "$python")/uv" pip install --quiet --python "$python" puccinialin
    mkdir -p "$home"
    if ! "$python" -m puccinialin --location "$home" --info-json "$home/env.json" >&2; then
      rm -f "$home/env.json"
      echo "tokenwire: Rust could not be fetched; install it (1.89 or newer) from your system or https://rustup.rs and try again" >&2
      exit 1
    fi
  fi
  while IFS= read -r line; do export "${line?}"; done < <(
    "$python" -c 'import json, sys; [print(f"{k}={v}") for k, v in json.load(open(sys.argv[1]))["env"].items()]' "$home/env.json")
  # The helper installs the minimal profile; lint wants these two.
  if [ ! -f "$home/components" ]; then rustup component add clippy rustfmt >&2 && touch "$home/components"; fi
fi
exec "$@"
