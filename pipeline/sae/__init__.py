"""SAEs: what they are, and the loss and gradient of each architecture. Tensors are all it knows."""
