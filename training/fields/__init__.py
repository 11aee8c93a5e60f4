"""Trains the network that finds leukocytes in fields (`app/imaging/cell_map.npz`)."""
