"""What is allowed. Reads YAML and decides; knows nothing of models, HTTP or storage."""
