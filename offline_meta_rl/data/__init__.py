"""Datasets of many tasks: the format, reading, writing, fetching."""
