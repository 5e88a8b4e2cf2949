"""The description of a collection: models, YAML, differences."""
