"""Measures every speed and memory figure that Leuko claims. The tests run none of it."""
