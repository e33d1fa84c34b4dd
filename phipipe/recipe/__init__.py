"""What the user writes: YAML with places, recipes, devices and the schema."""
