"""Routes: HTTP only; the name of a file is its URL."""
