"""The versions of the tables, each as the change from the one before it."""
