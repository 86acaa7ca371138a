"""The hub: repositories by name, their files, and what goes wrong."""
