# The same bits from g++ and clang, whatever the flags: bits_probe is built once per row of this matrix and its hashes
# are compared with those of the first row, for each instruction set that this processor has. See docs/BITS.md.
if(PEFT_SANITIZE)
  return()
endif()
find_program(PEFT_GXX g++)
find_program(PEFT_CLANGXX clang++)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(PEFT_GXX "${CMAKE_CXX_COMPILER}")
elseif(PEFT_GXX)
  message(STATUS "bits: the matrix of compilers and flags belongs to a build with g++")
  return()
else()
  set(PEFT_CLANGXX "${CMAKE_CXX_COMPILER}")
endif()

# Every level of optimisation, contraction on and off, what -ffast-math allows (-Ofast is -O3 with it), and the processor's
# own instructions.
set(peft_bits_rows "-O0" "-O1 -march=haswell -ffp-contract=off" "-O2 -march=haswell -ffp-contract=fast" "-O3"
  "-Ofast -march=native")
set(peft_bits_work "${CMAKE_CURRENT_BINARY_DIR}/bits")

function(peft_add_bits name compiler flags)
  add_test(NAME bits_${name} COMMAND "${CMAKE_COMMAND}" "-DNAME=${name}" "-DCXX=${compiler}" "-DFLAGS=${flags}"
    "-DLAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER}" "-DSOURCE=${PROJECT_SOURCE_DIR}" "-DWORK=${peft_bits_work}"
    "-DFMT=$<TARGET_FILE:fmt::fmt>" "-DFMT_INCLUDE=$<TARGET_PROPERTY:fmt::fmt,INTERFACE_INCLUDE_DIRECTORIES>"
    "-DREFERENCE=${peft_bits_reference}" -P "${PROJECT_SOURCE_DIR}/tests/bits/run.cmake")
  set_tests_properties(bits_${name} PROPERTIES LABELS bits TIMEOUT 600)
  if(name STREQUAL peft_bits_reference)
    set_tests_properties(bits_${name} PROPERTIES FIXTURES_SETUP bits_reference)
  else()
    set_tests_properties(bits_${name} PROPERTIES FIXTURES_REQUIRED bits_reference)
  endif()
endfunction()

set(peft_bits_reference)
foreach(compiler PEFT_GXX PEFT_CLANGXX)
  string(REPLACE "PEFT_" "" short "${compiler}")
  string(REPLACE "XX" "++" short "${short}")
  string(TOLOWER "${short}" short)
  if(NOT ${compiler})
    add_test(NAME bits_${short} COMMAND "${CMAKE_COMMAND}" -E echo "skipped: there is no ${short} here")
    set_tests_properties(bits_${short} PROPERTIES LABELS bits SKIP_REGULAR_EXPRESSION "^skipped")
    continue()
  endif()
  foreach(row IN LISTS peft_bits_rows)
    string(REGEX REPLACE "[ =]" "" name "${short}${row}")
    if(NOT peft_bits_reference)
      set(peft_bits_reference "${name}")
    endif()
    peft_add_bits("${name}" "${${compiler}}" "${row}")
  endforeach()
endforeach()
