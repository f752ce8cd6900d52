"""Figures, tables and RESULTS.md from the folders of runs."""
