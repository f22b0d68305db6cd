"""What stock PyTorch does badly for rows that must not depend on each other, done otherwise."""
