"""The engine: text in, text out, and the driver thread that keeps the pipeline full."""
