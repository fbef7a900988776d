"""Real torch models on real data, ready to search; each module is one objective."""
