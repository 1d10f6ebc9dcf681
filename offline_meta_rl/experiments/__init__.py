"""Experiments as data: every figure and table is a folder of configs, run and reported by one command."""
