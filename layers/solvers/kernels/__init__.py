"""What solvers do, compiled. Importing a module of this folder needs Numba, for the CPU, or Triton, for GPUs."""
