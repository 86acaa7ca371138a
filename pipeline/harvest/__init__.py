"""Stage one: from a model and a text to an activation store."""
