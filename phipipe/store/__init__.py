"""Objects by content, their keys and files, downloads, and the tier that machines share."""
