// bf16 matrix products, whose rows do not depend on their number: in matrix registers where there
// are some, else in vectors.
//
// Weights are in panels of 16 outputs: (inputs / 2, 16 outputs, 2 inputs), inputs padded with zeros
// to a multiple of 32, and panels to an even number. An output is one chain of sums over all inputs.
#pragma once
#if defined(PPINFER_AMX)
#include "linear_tiles.h"
#else
#include "linear_vectors.h"
#endif

// One of `count` threads' share of x (rows, size) times panels plus bias, if any, to (rows, outputs).
static void linear_share(const bf16 *x, const bf16 *panels, const bf16 *bias, bf16 *out, long rows, long size,
                         long outputs, int thread, int count) {
  const long pairs = (outputs + 31) / 32;
  multiply(x, rows, size, {panels, 32 * size, 16 * size}, pairs * thread / count, pairs * (thread + 1) / count,
           StoreBoth{bias, out, outputs});
}

// The same of gates and values (2 * inner outputs) and what gate_rows makes of them, to (rows, inner),
// a multiple of 16.
static void gated_share(const bf16 *x, const bf16 *panels, const bf16 *bias, bf16 *out, long rows, long size,
                        long inner, int thread, int count) {
  const long pairs = inner / 16;
  multiply(x, rows, size, {panels, 16 * size, inner * size}, pairs * thread / count, pairs * (thread + 1) / count,
           StoreGated{bias, out, inner});
}
