"""A music library: one table of embeddings, search in it, predictions and distances."""
