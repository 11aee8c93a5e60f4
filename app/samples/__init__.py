"""Synthetic smears: images to try the service with, without patient data."""
