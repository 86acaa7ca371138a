"""Learning inside the model: one scale and one bias a feature, everything else frozen."""
