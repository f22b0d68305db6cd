// What entry points share: plain C, called through ctypes.
#pragma once
#include "vector.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// As many threads as have something worth waking them for.
INLINE int useful(int threads, double operations) {
  const int most = 1 + (int)(operations / 20000);
  return threads < most ? threads : most;
}
