"""What the webhooks missed: the comparison with iconik, once an hour."""
