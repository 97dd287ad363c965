"""The benchmark suite: `python -m bench`, or `pytest bench --benchmark-only`."""
