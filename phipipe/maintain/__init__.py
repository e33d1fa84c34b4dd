"""For developers of phipipe: locks of toolchains, the generated reference, the site."""
