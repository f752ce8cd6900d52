"""Benchmarks: ours and others' in the same process, in turn. They say how fast; they never fail."""
