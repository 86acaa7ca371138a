"""The language model: read, replaced and stopped at sites."""
