"""Sparse coders: one module (`coder.SparseCoder`), its activation, its loss, its dead latents."""
