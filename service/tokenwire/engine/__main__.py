"""`python -m tokenwire.engine FD`: the engine process, spawned by `process.py`."""

from tokenwire.engine.main import main

main()
