"""What `pipeline.train` is made of: grids of runs, their rows, and groups that learn together."""
