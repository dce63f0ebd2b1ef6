"""Published models as Architecture files, one YAML a model."""
