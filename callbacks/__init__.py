"""Lightning callbacks: progress, monitoring, evaluation, saving, interruption."""
