"""Commands that make what a training starts from, without training."""
