"""Rows of activations that lie in other formats than a store: read, written, never run again."""
