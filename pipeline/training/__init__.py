"""Stage two: grids of runs, their rows, and groups that learn together."""
