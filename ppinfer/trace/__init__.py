"""Who did what when: a clock that records, the trace of a run, its file, and what it says."""
