"""What every room reads from a disk with care: JSON, names, paths that users give."""
