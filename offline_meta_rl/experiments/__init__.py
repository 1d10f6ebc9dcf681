"""Experiments as data: every figure and table is a folder of configs, which one command runs."""
