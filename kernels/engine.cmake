# The library of an engine: its HLS source compiled for this machine, and the native half of its driver. Each engine's
# folder stands alone, too, so that this is included from there.
include_guard()

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_package(Threads REQUIRED)

# hetrun_engine(NAME SCRIPTS FILE...): lib<NAME>.so into the package NAME, with the sources and the folder SCRIPTS that
# `hetrun build` writes projects of.
function(hetrun_engine name scripts)
  add_library(${name} SHARED ${ARGN})
  target_compile_features(${name} PRIVATE cxx_std_17)
  target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/.. ${CMAKE_CURRENT_SOURCE_DIR}/../include)
  # Vitis' pragmas mean nothing here.
  target_compile_options(${name} PRIVATE -O3 -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas)
  set_target_properties(${name} PROPERTIES CXX_VISIBILITY_PRESET default)
  if(NOT DEFINED HETRUN_WERROR OR HETRUN_WERROR)
    target_compile_options(${name} PRIVATE -Werror)
  endif()
  target_link_libraries(${name} PRIVATE Threads::Threads)
  target_link_options(${name} PRIVATE -static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL -Wl,-z,defs)

  install(TARGETS ${name} LIBRARY DESTINATION ${name}/_native)
  install(DIRECTORY hls ${scripts} ../fabric DESTINATION ${name}/_sources PATTERN host EXCLUDE)
endfunction()
