"""Measurements that docs/benchmarks.md shows: ``make bench``. No tests: what must hold is proved in tests/."""
