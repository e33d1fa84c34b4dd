# Read by CMake at the end of each project() of llama-cpp-python. Its own CMakeLists.txt asks for
# llama.cpp's `common` by force, which is half of what is compiled and serves programs that the
# Python package does not have. A normal variable wins over that cache entry.
set(LLAMA_BUILD_COMMON OFF)

# GCC loads the shapes of AMX tiles wrongly (its bug 114098, mended in 11.5, 12.4, 13.3 and 14), and
# llama.cpp then dies of an illegal instruction on processors that have them. It has other ways.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(gcc ${CMAKE_CXX_COMPILER_VERSION})
  if((gcc VERSION_GREATER_EQUAL 11 AND gcc VERSION_LESS 11.5)
     OR (gcc VERSION_GREATER_EQUAL 12 AND gcc VERSION_LESS 12.4)
     OR (gcc VERSION_GREATER_EQUAL 13 AND gcc VERSION_LESS 13.3))
    add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
  endif()
endif()
