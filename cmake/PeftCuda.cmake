# peft::cuda, on request (PEFT_CUDA): the CUDA half of the library, for sources that nvcc compiles and for those of g++ that use
# its host side. Where this is the top project, nvcc compiles our own programs too.
include(PeftCudaTarget)

if(PROJECT_IS_TOP_LEVEL)
  set(peft_no_nvcc "PEFT_CUDA is on and there is no nvcc. Looked at: CUDACXX, PATH, /usr/local/cuda/bin. Install the CUDA Toolkit \
(13.0 is tested; 12.8 or later is intended), or say where it is: CUDACXX=/path/to/nvcc cmake --preset cuda. Without it \
everything but peft::cuda builds: cmake --preset release")
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS "/usr/local/cuda/bin/nvcc")
    find_program(PEFT_NVCC nvcc HINTS /usr/local/cuda/bin)
    set(CMAKE_CUDA_COMPILER "${PEFT_NVCC}")
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    check_language(CUDA)
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "${peft_no_nvcc}")
  endif()
  # nvcc starts the host's compiler by this name; the newest g++ is not always one that it takes.
  if(NOT CMAKE_CUDA_HOST_COMPILER AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
  endif()
  # sm_80's code and PTX: what newer GPUs compile for themselves when they load it. -DCMAKE_CUDA_ARCHITECTURES=native for this machine's.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80)
  endif()
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA" AND CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    message(FATAL_ERROR "peft::cuda needs nvcc 12.8 or later (13.0 is tested); ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
  if(PEFT_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${PEFT_CCACHE}")
  endif()
endif()
find_package(CUDAToolkit 12.8)
if(NOT CUDAToolkit_FOUND)
  message(FATAL_ERROR "PEFT_CUDA is on and there is no CUDA Toolkit of 12.8 or later; say where: -DCUDAToolkit_ROOT=/usr/local/cuda")
endif()

add_library(peft_cuda INTERFACE)
add_library(peft::cuda ALIAS peft_cuda)
peft_cuda_target(peft_cuda)

# peft_cuda_defaults(target): warnings as errors of our own CUDA programs. No -Wpedantic: nvcc's own output breaks it.
function(peft_cuda_defaults target)
  target_link_libraries(${target} PRIVATE peft::cuda)
  target_compile_definitions(${target} PRIVATE PEFT_CHECK_FORMATS)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Wconversion,-Wshadow>"
    "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow>")
  if(PEFT_WERROR)
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror>" "$<$<COMPILE_LANGUAGE:CXX>:-Werror>")
  endif()
  set_target_properties(${target} PROPERTIES CUDA_RUNTIME_LIBRARY Shared)  # the one that peft::cuda links
endfunction()
