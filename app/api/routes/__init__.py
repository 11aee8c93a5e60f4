"""The routes: HTTP only; the name of a module is its URL."""
