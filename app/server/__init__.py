"""Server processes: the entry point, uvicorn with a graceful shutdown, a supervisor of several processes."""
