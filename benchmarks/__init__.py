"""The package against what a user would otherwise pick: `python -m benchmarks`."""
