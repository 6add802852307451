"""What data tell about a model: Fisher information, of mask nodes or of weights, and Gram matrices."""
