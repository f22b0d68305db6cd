"""A row's own process: ``python -m ppinfer.bench.worker KIND``. It loads once and runs often.

Requests come as JSON objects, one a line, on standard input: ``do`` names a method of the kind's
class, the rest are its keywords. Each is answered by one line: ``{"ok": …}``, or ``{"error": …,
"oom": …}``. Between requests it blocks in a read. When its input ends, so does it.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import queue
import resource
import sys
import threading
import time
from typing import Protocol, TextIO

from ppinfer.bench.procfs import first_to_be_killed

KINDS = {
    "pipeline": "ppinfer.bench.run_pipeline:PipelineRunner",
    "hf": "ppinfer.bench.run_hf:HFRunner",
    "probe": "ppinfer.bench.probe:Probe",
    "hop": "ppinfer.bench.hop:HopStage",
    "products": "ppinfer.bench.run_products:ProductsRunner",
}
_PATIENCE = 3.0
"""Seconds that a request under way is given to end once nobody waits for its answer."""


class Runner(Protocol):
    """What serves the requests of one kind; its public methods are the requests."""

    def close(self) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(prog="ppinfer.bench.worker")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--memory-limit", type=int, default=0, help="bytes of address space")
    arguments = parser.parse_args()
    first_to_be_killed()
    if arguments.memory_limit:
        resource.setrlimit(resource.RLIMIT_AS, (arguments.memory_limit,) * 2)
    answers = _take_standard_output()
    requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), name="requests", daemon=True).start()
    runner: Runner | None = None
    while (line := requests.get()) is not None:
        try:
            runner = runner or _load_kind(arguments.kind)
            request = json.loads(line)
            answer = {"ok": getattr(runner, request.pop("do"))(**request)}
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            answer = {"error": message, "oom": is_out_of_memory(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if runner is not None:
        runner.close()


def _load_kind(kind: str) -> Runner:
    module, _, name = KINDS[kind].partition(":")
    runner: Runner = getattr(importlib.import_module(module), name)()
    return runner


def _take_standard_output() -> TextIO:
    """The answers' stream; whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _read(requests: queue.SimpleQueue[str | None]) -> None:
    for line in sys.stdin:
        requests.put(line)
    requests.put(None)
    time.sleep(_PATIENCE)
    os._exit(1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was lacking, by torch's words too, which have no exception of their own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "CapacityError":
        return True
    if getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "std::bad_alloc",
             "cannot allocate memory", "killed by sigkill", "can't start new thread",
             "failed to map segment")  # fmt: skip
    return any(sign in text for sign in signs)


if __name__ == "__main__":
    main()
