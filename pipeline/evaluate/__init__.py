"""What a coder is worth: one file per family of metrics.

Start at `pipeline.evaluate.evaluation`. A family is a class that takes in batches and holds sums;
a new metric is one more sum, one property, and one field of `EvalReport`.
"""
