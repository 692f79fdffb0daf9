"""Training: pre-training in two stages, fine-tuning, and the one loop behind both."""
