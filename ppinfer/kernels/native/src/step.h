// What Python hands over; ppinfer/kernels/native/library.py has the same structures.
#pragma once
#include <stdint.h>

// One step: tokens of several sequences, one sequence after the other.
struct Step {
  int32_t num_seqs, num_tokens;
  int32_t block_size, block_shift;      // tokens of a block, a multiple of 16, and its logarithm
  int32_t kv_heads, group, head_dim;    // `group` query heads share a KV head
  int32_t unused;
  const int32_t *starts, *lengths;      // of each sequence: first position, number of tokens
  const int32_t *offsets;               // its first token in the step
  const int32_t *tables, *table_starts; // block ids of all sequences, and where each one's begin
};

// What a layer does to queries and keys before they meet.
struct Layer {
  const void *q_norm, *k_norm;          // (head_dim,) or null
  float eps;
  int32_t window;                       // positions back that a token sees, itself included; 0: all
};
