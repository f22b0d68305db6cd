"""What a model is and how its layers compute: knows nothing of processes or of its neighbours."""
