"""One pipeline stage: its KV cache, its step, its sampler, its process."""
