"""Pipeline-parallel inference for large language models."""
