"""What happened, as facts, and who may hear of them."""
