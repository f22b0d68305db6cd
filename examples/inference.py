"""The engine as the original system's example used it, with a Hugging Face model object.

`python examples/inference.py [FOLDER or FOLDER/FILE.gguf]`; needs transformers.
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from ppinfer import LlamaForCausalLMPipelinePolicy, PPInferEngine
from ppinfer.weights.resolve import resolve_model

path = Path(resolve_model(sys.argv[1] if len(sys.argv) > 1 else "demo"))
folder, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})

model = AutoModelForCausalLM.from_pretrained(folder, **options)
tokenizer = AutoTokenizer.from_pretrained(folder, **options)
inputs = tokenizer("Hello, my dog is cute", "What a good day", return_tensors="pt")

engine = PPInferEngine(
    pp_size=2,
    dtype="fp16",
    micro_batch_size=1,
    new_length=10,
    model=model,
    model_policy=LlamaForCausalLMPipelinePolicy(),
)
output = engine.inference([inputs])
print(tokenizer.batch_decode(output))
engine.close()
