// Where the threads of a step run. A thread that is woken while all cores are busy, if only for a
// moment, may be put on the core of a thread that will wait for it: then both take turns there, for
// as long as the step lasts, and another core has nothing to do.
#pragma once
#include <sched.h>

class Cores {
  static constexpr int WORDS = CPU_SETSIZE / 64;
  unsigned long taken[WORDS] = {};

  // Whether nobody had taken this core before.
  bool take(int core) {
    if (core < 0 || core >= CPU_SETSIZE) return true;  // whoever knows nothing changes nothing
    const unsigned long bit = 1ul << core % 64;
    return !(__atomic_fetch_or(&taken[core / 64], bit, __ATOMIC_RELAXED) & bit);
  }

 public:
  // Made by the first thread.
  Cores() { take(sched_getcpu()); }

  // Every other thread goes to a core that none has yet, if there is one that it may use.
  void settle() {
    if (take(sched_getcpu())) return;
    cpu_set_t allowed, free;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    CPU_ZERO(&free);
    for (int core = 0; core < CPU_SETSIZE; core++)
      if (CPU_ISSET(core, &allowed) && !(__atomic_load_n(&taken[core / 64], __ATOMIC_RELAXED) >> core % 64 & 1))
        CPU_SET(core, &free);
    if (!CPU_COUNT(&free) || sched_setaffinity(0, sizeof free, &free)) return;
    take(sched_getcpu());
    sched_setaffinity(0, sizeof allowed, &allowed);  // it stays, but may be moved again
  }
};
