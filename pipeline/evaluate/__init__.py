"""What a coder is worth.

Start at `pipeline.evaluate.evaluate`. A new metric is one entry of `metrics.py`, and where it needs
a sum that is not there, one more in `sums.py`.
"""
