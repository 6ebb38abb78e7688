"""Data sets: find or fetch, verify, split, and hold them ready for slicing into batches."""
