# The kernels of NEON beside the scalar ones, in the lane of emulated processors: ctest -C Qemu -R neon. Compiled for AArch64
# by a cross compiler and run by qemu-user, or by what this machine has where it is one.
if(PEFT_SANITIZE)
  return()
endif()
set(peft_neon_qemu)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(peft_neon_gxx "${CMAKE_CXX_COMPILER}")
else()
  find_program(PEFT_AARCH64_GXX aarch64-linux-gnu-g++)
  find_program(PEFT_QEMU_AARCH64 qemu-aarch64)
  if(NOT PEFT_AARCH64_GXX OR NOT PEFT_QEMU_AARCH64)
    add_test(NAME neon CONFIGURATIONS Qemu COMMAND "${CMAKE_COMMAND}" -E echo
      "skipped: there is no aarch64-linux-gnu-g++ (package g++-aarch64-linux-gnu) or no qemu-aarch64 (qemu-user)")
    set_tests_properties(neon PROPERTIES LABELS qemu SKIP_REGULAR_EXPRESSION "^skipped")
    return()
  endif()
  set(peft_neon_gxx "${PEFT_AARCH64_GXX}")
  set(peft_neon_qemu "${PEFT_QEMU_AARCH64}")
endif()
add_test(NAME neon CONFIGURATIONS Qemu COMMAND "${CMAKE_COMMAND}" "-DCXX=${peft_neon_gxx}" "-DQEMU=${peft_neon_qemu}"
  "-DLAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER}" "-DSOURCE=${PROJECT_SOURCE_DIR}" "-DWORK=${CMAKE_CURRENT_BINARY_DIR}/neon"
  "-DFMT_INCLUDE=$<TARGET_PROPERTY:fmt::fmt,INTERFACE_INCLUDE_DIRECTORIES>" -P "${CMAKE_CURRENT_LIST_DIR}/run.cmake")
set_tests_properties(neon PROPERTIES LABELS qemu TIMEOUT 300)
