"""The API as plain values, without I/O: bodies to values, values to bytes."""
