// Matrix registers (AMX): what the products of bf16 attention and of linear layers share.
//
// A register's element is one chain of sums, whatever the number of rows beside it, so that a row's
// bits are its own here too.
#pragma once
#include "vector.h"
#include <sys/syscall.h>
#include <unistd.h>

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

INLINE bool allow_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }  // ARCH_REQ_XCOMP_PERM
INLINE void end_tiles() { _tile_release(); }
INLINE void settle() { __asm__ volatile("" ::: "memory"); }  // tile loads do not say that they read
