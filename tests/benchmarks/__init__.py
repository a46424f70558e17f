"""Benchmarks: no tests, and no absolute times."""
