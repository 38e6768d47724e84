"""Every generation's numbered events, and those who read them."""
