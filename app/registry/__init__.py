"""The served models: fetch a bundle, run it, replace it, and compare shadow models with it."""
