"""Text generation over two stages on this machine: `python examples/generate.py [MODEL]`."""

import sys

from ppinfer import PPInferEngine, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
prompts = [
    "The capital of France is",
    [{"role": "user", "content": "Name three colours of the rainbow."}],
]
with PPInferEngine(model, pp_size=2) as engine:
    for result in engine.generate(prompts, SamplingParams(max_tokens=32)):
        print(f"{result.index}: {result.text!r} ({result.finish_reason})")
    print(engine.report().summary())
