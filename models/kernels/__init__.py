"""Compiled twins of the decoders' costs, for the CPU. Importing a module of this folder needs Numba."""
