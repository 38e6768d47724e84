"""Conversations: how they are kept, and how they become prompts."""
