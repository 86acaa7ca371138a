"""Moving a model along what features of an SAE write, and what that does to its texts."""
