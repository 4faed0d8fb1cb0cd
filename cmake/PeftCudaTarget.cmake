# peft_cuda_target(target): what a user of peft::cuda gets, in this tree and from the installed package. CUDA::… are CMake's
# FindCUDAToolkit's. The flag stands here since CMake before 3.26 knows no -std=c++20 for nvcc 13; given twice it does no harm.
function(peft_cuda_target target)
  target_link_libraries(${target} INTERFACE peft::peft CUDA::cudart CUDA::cublas CUDA::cublasLt)
  target_compile_options(${target} INTERFACE "$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-std=c++20>")
endfunction()
