"""Formats of others' data, one file for each."""
