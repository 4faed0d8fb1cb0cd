# What builds and checks the CUDA half. Without PEFT_CUDA, so in the other lanes: the kernels' headers compile alone. With it
# (preset cuda): the host's headers do, GPU programs, what nvcc compiles, and the static proof.
if(PEFT_SANITIZE)
  return()  # nothing here runs
endif()
set(peft_cuda_dir "${PROJECT_SOURCE_DIR}/tests/cuda")

# -- every header alone, by the C++ compiler, over the emulator: nvcc takes four seconds for each. Those of the host's side where
# there is a toolkit.
file(GLOB_RECURSE peft_cuda_headers RELATIVE "${PROJECT_SOURCE_DIR}/include" CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/include/peft/cuda/*.hpp" "${PROJECT_SOURCE_DIR}/include/peft/cuda/*.cuh")
if(PEFT_CUDA)
  list(FILTER peft_cuda_headers EXCLUDE REGEX "^peft/cuda/kernels/")
else()
  list(FILTER peft_cuda_headers INCLUDE REGEX "^peft/cuda/kernels/")
endif()
set(units)
foreach(header IN LISTS peft_cuda_headers)
  string(MAKE_C_IDENTIFIER "${header}" unit)
  set(source "${CMAKE_CURRENT_BINARY_DIR}/cuda_alone/${unit}.cpp")
  file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"@header@\"\n" @ONLY)
  list(APPEND units "${source}")
endforeach()
add_library(peft_cuda_headers_alone OBJECT EXCLUDE_FROM_ALL ${units})
target_link_libraries(peft_cuda_headers_alone PRIVATE peft::peft)
target_include_directories(peft_cuda_headers_alone PRIVATE "${peft_cuda_dir}/emulator")
target_compile_definitions(peft_cuda_headers_alone PRIVATE PEFT_CUDA_EMULATOR PEFT_SEPARATE_IMPLEMENTATION)  # is never linked
peft_target_defaults(peft_cuda_headers_alone)
target_compile_options(peft_cuda_headers_alone PRIVATE -fsyntax-only)
add_test(NAME cuda_headers_alone
  COMMAND "${CMAKE_COMMAND}" --build "${CMAKE_BINARY_DIR}" --target peft_cuda_headers_alone --parallel 2)
set_tests_properties(cuda_headers_alone PROPERTIES LABELS "compile;cuda" RESOURCE_LOCK build_tree TIMEOUT 600)

if(NOT PEFT_CUDA)
  return()
endif()
target_link_libraries(peft_cuda_headers_alone PRIVATE peft::cuda)
find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)
add_custom_target(peft_cuda_all)

# -- the page's code -------------------------------------------------------------------------------------------------
peft_code_of("${PROJECT_SOURCE_DIR}/docs/CUDA.md" code)
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/docs/CUDA.cu" CONTENT "@code@" @ONLY)
add_library(peft_cuda_page OBJECT EXCLUDE_FROM_ALL "${CMAKE_CURRENT_BINARY_DIR}/docs/CUDA.cu")
peft_cuda_defaults(peft_cuda_page)
set_target_properties(peft_cuda_page PROPERTIES CUDA_ARCHITECTURES 80-real)
add_dependencies(peft_cuda_all peft_cuda_page)

# -- programs for a GPU: where there is none they say so and end with 77 -----------------------------------------------
add_executable(test_cuda_gpu "${peft_cuda_dir}/gpu/main.cu")
add_executable(bench_cuda "${peft_cuda_dir}/gpu/bench_cuda.cu")
foreach(program test_cuda_gpu bench_cuda)
  target_link_libraries(${program} PRIVATE peft_implementation)
  target_include_directories(${program} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  peft_cuda_defaults(${program})
  add_dependencies(peft_cuda_all ${program})
endforeach()
add_test(NAME cuda_gpu COMMAND test_cuda_gpu)
add_test(NAME cuda_bench COMMAND bench_cuda)
set_tests_properties(cuda_gpu cuda_bench PROPERTIES LABELS cuda SKIP_RETURN_CODE 77 TIMEOUT 3600 RUN_SERIAL ON)

# The same tests, on small shapes, by the C++ compiler over the emulator, with a stand-in for cudart and cuBLASLt: the host's side
# runs without a GPU. PEFT_EMULATED_SM picks the routes.
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/cuda_emulated/main.cpp" CONTENT "#include \"@peft_cuda_dir@/gpu/main.cu\"\n" @ONLY)
add_executable(test_cuda_gpu_emulated "${CMAKE_CURRENT_BINARY_DIR}/cuda_emulated/main.cpp" "${peft_cuda_dir}/gpu/emulated/runtime.cpp")
target_link_libraries(test_cuda_gpu_emulated PRIVATE peft::peft peft_implementation)
target_include_directories(test_cuda_gpu_emulated PRIVATE "${PROJECT_SOURCE_DIR}/tests" "${peft_cuda_dir}/emulator" "${peft_cuda_dir}/gpu")
target_include_directories(test_cuda_gpu_emulated SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(test_cuda_gpu_emulated PRIVATE PEFT_CUDA_EMULATOR)
target_compile_options(test_cuda_gpu_emulated PRIVATE -include cuda_runtime_api.h -O1 -g1)
peft_target_defaults(test_cuda_gpu_emulated)
add_dependencies(peft_cuda_all test_cuda_gpu_emulated)
foreach(sm 75 90)
  add_test(NAME cuda_gpu_emulated_sm${sm} COMMAND test_cuda_gpu_emulated)
  set_tests_properties(cuda_gpu_emulated_sm${sm} PROPERTIES LABELS cuda TIMEOUT 600 ENVIRONMENT PEFT_EMULATED_SM=${sm})
endforeach()

# -- the host side without a GPU ---------------------------------------------------------------------------------------
file(GLOB peft_cuda_host_tests CONFIGURE_DEPENDS "${peft_cuda_dir}/host_*_test.cpp")
if(peft_cuda_host_tests)
  add_executable(test_cuda_host ${peft_cuda_host_tests} $<TARGET_OBJECTS:peft_test_main>)
  target_link_libraries(test_cuda_host PRIVATE ${peft_catch} peft_implementation)
  target_include_directories(test_cuda_host PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  peft_cuda_defaults(test_cuda_host)
  add_dependencies(peft_cuda_all test_cuda_host)
  add_test(NAME cuda_host COMMAND test_cuda_host)
  set_tests_properties(cuda_host PROPERTIES LABELS cuda TIMEOUT 300)
endif()

# -- static proof --------------------------------------------------------------------------------------------------------
# For two architectures: sm_75, which lacks cp.async and bf16 mma and has its own routes, and sm_90, which stands for sm_80 and
# later. All eight: docs/CUDA.md.
set(PEFT_CUDA_PROOF_ARCHS "75,90" CACHE STRING "compute capabilities that the test cuda_proof compiles")
set(prove "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/prove.py" --nvcc "${CMAKE_CUDA_COMPILER}" --cxx "${CMAKE_CXX_COMPILER}"
  --launcher "${CMAKE_CUDA_COMPILER_LAUNCHER}")
add_test(NAME cuda_proof COMMAND ${prove} --arch "${PEFT_CUDA_PROOF_ARCHS}" --build "${CMAKE_BINARY_DIR}/proof"
  --check-table "${PROJECT_SOURCE_DIR}/docs/CUDA_OCCUPANCY.md")
set_tests_properties(cuda_proof PROPERTIES LABELS cuda TIMEOUT 1200 RUN_SERIAL ON)
# The proof sees what breaks it: a unit of kernels that do, one way each.
set(planted ${prove} --units "${CMAKE_CURRENT_LIST_DIR}/planted" --budget "${CMAKE_CURRENT_LIST_DIR}/planted/budget.txt")
add_test(NAME cuda_proof_sees_planted COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/expect_findings.py"
  "${CMAKE_CURRENT_LIST_DIR}/planted/findings.txt" -- ${planted} --arch 75,90 --build "${CMAKE_BINARY_DIR}/proof_planted")
add_test(NAME cuda_occupancy_is_nvidias COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/check_occupancy.py"
  "${CMAKE_CXX_COMPILER}" "${CUDAToolkit_INCLUDE_DIRS}" "${CMAKE_BINARY_DIR}/proof")
set_tests_properties(cuda_proof_sees_planted cuda_occupancy_is_nvidias PROPERTIES LABELS cuda TIMEOUT 300)

# -- the installed package -----------------------------------------------------------------------------------------------
add_test(NAME cuda_consumer COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}" "-DBUILD=${PROJECT_BINARY_DIR}"
  "-DWORK=${CMAKE_CURRENT_BINARY_DIR}/cuda_consumer" "-DCXX=${CMAKE_CXX_COMPILER}" "-DNVCC=${CMAKE_CUDA_COMPILER}"
  "-DARCHS=${CMAKE_CUDA_ARCHITECTURES}" -P "${peft_cuda_dir}/consumer/run.cmake")
set_tests_properties(cuda_consumer PROPERTIES LABELS cuda TIMEOUT 600)
