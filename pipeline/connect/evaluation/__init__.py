"""What connectors keep of the features they predict, and of the model's loss."""
