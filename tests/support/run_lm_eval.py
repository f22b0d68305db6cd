"""lm-eval as a program of its own: ``run_lm_eval.py URL FOLDER``, on a server of this machine.

``FOLDER`` has the task ``choices`` and a tokenizer. Prints one JSON list a way to send prompts
(token ids, text): for every question a list of (log-likelihood, whether greedy), one a choice.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def refuse_strangers(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        assert arguments[1][0] == "127.0.0.1", "nobody but the server is asked"


def main() -> None:
    sys.addaudithook(refuse_strangers)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    url, folder = sys.argv[1:]
    for as_ids in (True, False):
        results = simple_evaluate(
            model="local-completions",
            model_args={
                "model": "demo",
                "base_url": f"{url}/completions",
                "tokenizer": f"{folder}/tokenizer",
                "tokenizer_backend": "huggingface",
                "tokenized_requests": as_ids,
            },
            batch_size=4 if as_ids else 1,
            tasks=["choices"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
        )
        samples = sorted(results["samples"]["choices"], key=lambda sample: sample["doc_id"])
        print(json.dumps([[answer for (answer,) in sample["resps"]] for sample in samples]))


if __name__ == "__main__":
    main()
