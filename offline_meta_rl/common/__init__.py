"""Jobs that every package has: files, provenance, progress, statistics, commands."""
