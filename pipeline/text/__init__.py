"""From the name of a text to contexts of tokens."""
