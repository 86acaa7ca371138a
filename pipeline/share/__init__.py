"""Runs and stores on their way out of a machine, and in."""
