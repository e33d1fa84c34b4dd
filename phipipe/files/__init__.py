"""What every room reads from a disk with care: JSON, names, templates, paths that users give."""
