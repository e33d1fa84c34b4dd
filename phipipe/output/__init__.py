"""What commands print as JSON, document by document."""
