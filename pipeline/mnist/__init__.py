"""Sparse features of a classifier of digits, and the network of features that stands in for it."""
