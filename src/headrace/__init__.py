"""headrace: streaming-first LLM inference on your own machine."""

__version__ = "0.1.0"
