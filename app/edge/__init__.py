"""Connections, limits, keys and admission, applied before a body is read; then the request log and traces."""
