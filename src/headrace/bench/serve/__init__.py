"""A load generator for any OpenAI-compatible server: lean, since it often shares its machine."""
