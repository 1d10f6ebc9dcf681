"""Two drawers and a Sawyer arm, seen by a camera."""
