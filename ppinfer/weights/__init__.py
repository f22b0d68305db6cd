"""From a checkpoint on disk (or in memory) to the tensors of one stage."""
