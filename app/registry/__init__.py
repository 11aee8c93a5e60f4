"""Which models answer: fetch a bundle, start its runner, replace it, shadow it."""
