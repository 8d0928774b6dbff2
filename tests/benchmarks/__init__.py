"""The benchmark suite, `uv run python -m tests.benchmarks`; the module of each section says what it times."""
