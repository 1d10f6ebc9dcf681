"""MuJoCo families: half-cheetahs, ants, walkers."""
