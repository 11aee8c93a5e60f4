"""Synthetic smears: pictures to try the service with, without any patient's data."""
