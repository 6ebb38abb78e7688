"""Models: ordinary modules of one run, their pieces from scratch, and the losses."""
