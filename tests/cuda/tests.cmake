# The CUDA kernels without a GPU and without a CUDA toolkit: tests/cuda/emulator runs them as they are, a fiber per thread.
set(peft_cuda_emulator_defines PEFT_CUDA_EMULATOR)

# peft_add_cuda_test(name sources...): a program whose kernels the emulator runs.
function(peft_add_cuda_test name)
  peft_add_test(${name} ${ARGN} LABELS cuda DEFINES ${peft_cuda_emulator_defines})
  target_include_directories(test_${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests/cuda/emulator")
  target_compile_options(test_${name} PRIVATE -O1)  # a kernel runs here instruction by instruction
endfunction()

# The emulator itself: each wrapper, and planted mistakes that it has to find.
peft_add_cuda_test(cuda_emulator
  ${CMAKE_CURRENT_LIST_DIR}/emulator/matrices_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/emulator/memory_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/emulator/numbers_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/emulator/planted_bugs_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/emulator/threads_test.cpp)
