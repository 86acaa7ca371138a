"""Sparse coders: one module (`coder.SAE`), its activation, its loss, its dead latents."""
