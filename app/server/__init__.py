"""A process that serves: the entry, several processes under a supervisor, uvicorn with an orderly end."""
