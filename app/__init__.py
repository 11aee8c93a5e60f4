"""Leuko: white blood cell classification over HTTP."""

__version__ = "0.1.0"
