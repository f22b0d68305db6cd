"""All layers in one native call: the bits of layer by layer, whatever stands beside a row."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppinfer.kernels.batch import AttentionBatch
from ppinfer.kernels.linear import Linear
from ppinfer.kernels.native import library
from ppinfer.kernels.ops import AttentionLayer, Buffers, ops_for_step
from ppinfer.kernels.stack import LayerParts, LayerStack, fits
from tests.kernels.test_ops import Shape, Table, random

pytestmark = pytest.mark.usefixtures("kernel_path")
CPU = torch.device("cpu")
HIDDEN, DIM, HEADS, KV_HEADS = 64, 32, 6, 2  # six query and two KV heads, as test_ops' Shape
LENGTHS = [1, 40, 17, 2, 33]


def layers(inner: int, bias: bool, dtype: torch.dtype, count: int = 2) -> list[LayerParts]:
    def linear(outputs: int, inputs: int) -> Linear:
        weight = random(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
        return Linear(weight, random(1, outputs, dtype=dtype)[0] if bias else None)

    attention = AttentionLayer(
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, window=None, q_norm=None,
        k_norm=None, eps=0.0,
    )  # fmt: skip
    return [
        LayerParts(
            attn_norm=random(1, HIDDEN, dtype=dtype)[0],
            qkv=linear((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
            attention=attention,
            out=linear(HIDDEN, HEADS * DIM),
            mlp_norm=random(1, HIDDEN, dtype=dtype)[0],
            gate_up=linear(2 * inner, HIDDEN),
            down=linear(HIDDEN, inner),
            eps=1e-5,
        )
        for _ in range(count)
    ]


def cache(count: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    return [
        tuple(torch.full((2, 20, KV_HEADS, 16, DIM), torch.nan, dtype=dtype)) for _ in range(count)
    ]


def batch(lengths: Sequence[int], first: int = 0) -> AttentionBatch:
    """Sequences ``first`` and following of LENGTHS, each with four blocks of its own."""
    tables = [[4 * (first + i) + j for j in range(4)] for i in range(len(lengths))]
    return AttentionBatch.build(
        [0] * len(lengths), lengths, tables, 16, config=Shape(DIM), device=CPU
    )


def layer_by_layer(parts: list[LayerParts], x: Tensor, table: Table, dtype: torch.dtype) -> Tensor:
    ops = ops_for_step(batch(LENGTHS), table, Buffers(dtype), dtype)
    pending: Tensor | None = None
    for layer, pools in zip(parts, cache(len(parts), dtype), strict=True):
        normed = ops.norm(x, pending, layer.attn_norm, layer.eps)
        mixed = layer.out(ops.attention(layer.qkv(normed), layer.attention, pools))
        normed = ops.norm(x, mixed, layer.mlp_norm, layer.eps)
        pending = layer.down(ops.gated_silu(layer.gate_up(normed)))
    assert pending is not None
    return x.add_(pending)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("inner", [32, 96, 544])
def test_the_bits_of_layer_by_layer(inner: int, bias: bool, dtype: torch.dtype) -> None:
    kernels = library.active()
    parts = layers(inner, bias, dtype)
    if kernels is None or not fits(parts):
        pytest.skip("this path has no product of its own for the dtype")
    table = Table(DIM, dtype)
    x = random(sum(LENGTHS), HIDDEN, dtype=dtype)
    expected = layer_by_layer(parts, x.clone(), table, dtype)
    assert expected.isfinite().all()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        stack = LayerStack(kernels, parts, cache(len(parts), dtype), Buffers(dtype))
        assert torch.equal(stack(x.clone(), batch(LENGTHS), table), expected)
        at = 0
        for i, length in enumerate(LENGTHS):  # and each sequence by itself
            rows = stack(x[at : at + length].clone(), batch([length], i), table)
            assert torch.equal(rows, expected[at : at + length])
            at += length


def test_threads_of_a_step_share_no_core() -> None:
    """Where the other core is busy, the system likes to wake both of them on the same one."""
    if library.active() is None or not fits(layers(32, bias=False, dtype=torch.float32)):
        pytest.skip("this path has no product of its own")
    main, other, *_ = [*sorted(os.sched_getaffinity(0)), -1]
    if other < 0:
        pytest.skip("needs two cores")
    code = f"from tests.kernels.test_stack import print_cores_of_worker as p; p({main}, {other})"
    found: list[int] = []
    with subprocess.Popen([sys.executable, "-c", _BUSY.format(core=other)]) as busy:
        try:
            while len(found) < 12 and max(found, default=0) < 45:  # other tests have the cores too
                run = subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, text=True, check=True
                )
                found.append(run.stdout.split().count(str(other)))
        finally:
            busy.kill()
    assert max(found) >= 45, f"{found} of 50"


_BUSY = "import os; os.sched_setaffinity(0, {{{core}}}); os.nice(19)\nwhile True: pass"


def print_cores_of_worker(main: int, other: int) -> None:
    """In a process of its own: where the second thread was at the end of each of many steps."""
    kernels, dtype = library.active(), torch.float32
    assert kernels is not None
    torch.set_num_threads(1)  # the second thread comes with the first step
    parts = layers(544, bias=False, dtype=dtype, count=8)
    stack = LayerStack(kernels, parts, cache(len(parts), dtype), Buffers(dtype))
    table, x = Table(DIM, dtype), random(sum(LENGTHS), HIDDEN, dtype=dtype)
    torch.set_num_threads(2)
    before = set(os.listdir("/proc/self/task"))
    stack(x.clone(), batch(LENGTHS), table)
    (worker,) = set(os.listdir("/proc/self/task")) - before
    os.sched_setaffinity(0, {main})
    for _ in range(50):
        for allowed in ({main}, {main, other}):  # it would wake again where it was
            os.sched_setaffinity(int(worker), allowed)
            stack(x.clone(), batch(LENGTHS), table)
        stat = Path(f"/proc/self/task/{worker}/stat").read_text()
        print(stat.rpartition(")")[2].split()[36])  # proc(5): processor
