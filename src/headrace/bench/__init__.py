"""Measuring: our own figures, and llama.cpp's on the same file and shapes in the same run."""
