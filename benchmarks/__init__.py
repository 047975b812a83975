"""Benchmarks: measurements on a GPU, beside baselines of the same run. They are not tests."""
