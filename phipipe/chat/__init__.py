"""A talk with a finished package, in its own toolchain."""
