"""The networks as PyTorch trains them. Forecasting does without: models compute the same from the weights alone."""
