"""Other model servers around the same network, each as its documentation shows."""
