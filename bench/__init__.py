"""Measurements beside peers, in one run; `python -m bench` runs all and writes the table of `bench/README.md`."""
