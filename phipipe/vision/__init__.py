"""Models that see: their eyes, the pictures they are shown, their language model cut out."""
