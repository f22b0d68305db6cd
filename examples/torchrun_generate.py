"""One program on every rank: `torchrun --nproc-per-node 2 examples/torchrun_generate.py [MODEL]`.

Every rank keeps one stage. Rank 0 drives and gets the results; on the others generate() returns
nothing, once rank 0 has closed the engine.
"""

import sys

from ppinfer import PPInferEngine, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
with PPInferEngine(model) as engine:
    for result in engine.generate("The capital of France is", SamplingParams(max_tokens=32)):
        print(result.text)
