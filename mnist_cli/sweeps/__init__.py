"""Sweeps: which runs, in which stacks, where they run, and how they rank."""
