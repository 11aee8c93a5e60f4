"""What happens to a request before its body is read: connections, limits, keys, admission, request log."""
