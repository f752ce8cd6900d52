"""Compiled twins of oracles and projections; importing a module needs Numba or Triton."""
