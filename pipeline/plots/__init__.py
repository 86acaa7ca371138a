"""Figures, drawn from finished results."""
