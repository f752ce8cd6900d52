"""Experiments: data, training, named configurations and the `sparsemarg` command line."""
