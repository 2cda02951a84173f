"""`tokenwire serve` over the faulty engine: ``serve_faulty.py JSON``, a list of its options and the settings."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "grpc"))

from chaos_service import chaos_config, create_engine

from tokenwire.server import run

if __name__ == "__main__":
    options, settings = json.loads(sys.argv[1])
    sys.exit(run(chaos_config(options, **settings), create_engine))
