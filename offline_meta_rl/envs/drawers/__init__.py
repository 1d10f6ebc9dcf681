"""Drawers in the plane, seen in small images."""
