# cmake -DCXX= -DQEMU= -DLAUNCHER= -DSOURCE= -DWORK= -DFMT_INCLUDE= -P run.cmake
# Builds neon_check for AArch64 and runs it with the instruction set that it takes itself, with each that it is told to take, and
# with one that it cannot have.
cmake_policy(VERSION 3.22)
# fmt's headers alone: those beside them are this machine's.
file(MAKE_DIRECTORY "${WORK}/include")
find_path(fmt fmt/format.h PATHS ${FMT_INCLUDE} /usr/include NO_DEFAULT_PATH REQUIRED)
file(CREATE_LINK "${fmt}/fmt" "${WORK}/include/fmt" SYMBOLIC)
execute_process(COMMAND ${LAUNCHER} "${CXX}" -std=c++20 -O1 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -DFMT_HEADER_ONLY
  "-I${SOURCE}/include" -isystem "${WORK}/include" -c "${SOURCE}/tests/neon/neon_check.cpp" -o "${WORK}/neon_check.o"
  COMMAND_ERROR_IS_FATAL ANY)
# Static: no library of that processor is looked for.
execute_process(COMMAND "${CXX}" -static "${WORK}/neon_check.o" -o "${WORK}/neon_check" -pthread COMMAND_ERROR_IS_FATAL ANY)
foreach(isa "" scalar neon)
  set(ENV{PEFT_FORCE_ISA} "${isa}")
  set(ENV{PEFT_TEST_EXPECTED_ISA} "${isa}")
  if(isa STREQUAL "")
    set(ENV{PEFT_TEST_EXPECTED_ISA} neon)
  endif()
  execute_process(COMMAND ${QEMU} "${WORK}/neon_check" COMMAND_ERROR_IS_FATAL ANY)
endforeach()
set(ENV{PEFT_FORCE_ISA} avx2)
execute_process(COMMAND ${QEMU} "${WORK}/neon_check" RESULT_VARIABLE status OUTPUT_VARIABLE text)
if(NOT status EQUAL 2 OR NOT text MATCHES "\"avx2\", which this processor lacks; its best is \"neon\"")
  message(FATAL_ERROR "neon: PEFT_FORCE_ISA=avx2 gives status ${status} and: ${text}")
endif()
