# 64-bit ARM Linux by Debian's and Ubuntu's cross compiler: apt-get install g++-aarch64-linux-gnu
# The base instruction set (ARMv8.0-A); what a core has beyond it is found at run time.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
# Drops what of libstdc++.a nothing calls: its random_device would ask for glibc 2.36, the PYNQ image has 2.35.
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-Wl,--gc-sections -Wl,--exclude-libs,ALL")
