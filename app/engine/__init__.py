"""Pixels to probabilities: a verified bundle, its classifier, and the OpenVINO and torch engines."""
