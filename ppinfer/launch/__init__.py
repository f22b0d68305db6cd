"""Starting stage processes, and nothing else."""
