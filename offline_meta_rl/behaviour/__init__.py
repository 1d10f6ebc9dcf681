"""Behaviour policies, and collecting datasets with them."""
