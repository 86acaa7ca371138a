"""Connectors: sparse maps from the latents of one SAE to those of another."""
