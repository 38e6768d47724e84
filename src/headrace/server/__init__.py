"""The door: HTTP in, HTTP out. Everything that is decided is decided below."""
