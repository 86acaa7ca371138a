"""What others made and keep in their own files, in and out: SAEs, and rows of activations."""
