# Read by CMake at the end of each project() of llama-cpp-python. Its own CMakeLists.txt asks for
# llama.cpp's `common` by force, which is half of what is compiled and serves programs that the
# Python package does not have. A normal variable wins over that cache entry.
set(LLAMA_BUILD_COMMON OFF)
