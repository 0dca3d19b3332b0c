"""A pre-shared key for each pair of members, agreed by ML-KEM-768 inside their tunnel."""
