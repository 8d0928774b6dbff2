"""Ways to fit the same mixture: EM, MAP, variational inference, NUTS; `model` is the NumPyro model they share."""
