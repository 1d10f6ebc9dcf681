"""Losses as functions of tensors, one file for each algorithm."""
