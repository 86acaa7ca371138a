"""What a coder is worth.

Start at `pipeline.evaluate.evaluate`. A new metric is one more sum, in `fidelity.py` or
`sparsity.py`, one formula in `metrics.py`, and one field of `EvalReport`.
"""
