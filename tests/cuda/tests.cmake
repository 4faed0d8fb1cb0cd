# The CUDA kernels without a GPU and without a CUDA toolkit: tests/cuda/emulator runs them as they are, a fiber per thread.

# peft_add_cuda_test(name sources...): a program whose kernels the emulator runs.
function(peft_add_cuda_test name)
  peft_add_test(${name} ${ARGN} LABELS cuda DEFINES PEFT_CUDA_EMULATOR)
  target_include_directories(test_${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests/cuda/emulator")
  target_compile_options(test_${name} PRIVATE -O1)  # warps run here lane by lane
endfunction()

# The emulator itself: each wrapper, and planted mistakes that it has to find.
peft_add_cuda_test(cuda_emulator
  ${CMAKE_CURRENT_LIST_DIR}/emulator/matrices_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/emulator/memory_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/emulator/numbers_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/emulator/planted_bugs_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/emulator/threads_test.cpp)

# The kernels, those that share instantiations together.
peft_add_cuda_test(cuda_four_bit
  ${CMAKE_CURRENT_LIST_DIR}/four_bit_forward_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/four_bit_layout_test.cpp)
peft_add_cuda_test(cuda_lora
  ${CMAKE_CURRENT_LIST_DIR}/adapter_batch_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/lora_forward_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/lora_gradient_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/lora_shrink_test.cpp)
peft_add_cuda_test(cuda_training
  ${CMAKE_CURRENT_LIST_DIR}/adamw_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/bottleneck_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/cross_entropy_test.cpp)
