"""For developers of phipipe: locks of toolchains and the tables of the README."""
