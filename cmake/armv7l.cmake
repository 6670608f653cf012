# 32-bit ARM Linux, hard float, by Debian's and Ubuntu's cross compiler: apt-get install g++-arm-linux-gnueabihf
# Tuned for the Cortex-A9 of a Zynq-7000 (PYNQ-Z1), which has NEON; every ARMv7-A core with NEON runs it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR armv7l)
set(CMAKE_C_COMPILER arm-linux-gnueabihf-gcc)
set(CMAKE_CXX_COMPILER arm-linux-gnueabihf-g++)
set(CMAKE_C_FLAGS_INIT "-mcpu=cortex-a9 -mfpu=neon")
set(CMAKE_CXX_FLAGS_INIT "-mcpu=cortex-a9 -mfpu=neon")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
# Drops what of libstdc++.a nothing calls: its random_device would ask for glibc 2.36, the PYNQ image has 2.35.
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-Wl,--gc-sections -Wl,--exclude-libs,ALL")
