if(PEFT_SANITIZE)
  return()  # nothing here runs
endif()

# Programs of static_asserts: part of the build, nothing to run.
add_library(peft_compile_tests OBJECT
  ${CMAKE_CURRENT_LIST_DIR}/card_names.cpp
  ${CMAKE_CURRENT_LIST_DIR}/lora_is_light.cpp)
target_link_libraries(peft_compile_tests PRIVATE peft::peft)
peft_target_defaults(peft_compile_tests)

# Every header of the library and of the hosts compiles alone: one translation unit per header, built by its own test only.
file(GLOB_RECURSE peft_headers RELATIVE "${PROJECT_SOURCE_DIR}/include" CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/include/peft/*.hpp")
list(FILTER peft_headers EXCLUDE REGEX "^peft/cuda/")  # those need the CUDA Toolkit
file(GLOB_RECURSE peft_example_headers RELATIVE "${PROJECT_SOURCE_DIR}/examples" CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/examples/hosts/*.hpp")
set(peft_header_sources)
foreach(header IN LISTS peft_headers peft_example_headers)
  string(MAKE_C_IDENTIFIER "${header}" unit)
  set(source "${CMAKE_CURRENT_BINARY_DIR}/headers_alone/${unit}.cpp")
  file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"@header@\"\n" @ONLY)
  list(APPEND peft_header_sources "${source}")
endforeach()
add_library(peft_headers_alone OBJECT EXCLUDE_FROM_ALL ${peft_header_sources})
target_link_libraries(peft_headers_alone PRIVATE peft::peft)
target_include_directories(peft_headers_alone PRIVATE "${PROJECT_SOURCE_DIR}/examples")
peft_target_defaults(peft_headers_alone)
target_compile_options(peft_headers_alone PRIVATE -O0 -g0)
# Never linked. The other way, everything inline, is the consumers'.
target_compile_definitions(peft_headers_alone PRIVATE PEFT_SEPARATE_IMPLEMENTATION)
add_test(NAME headers_alone
  COMMAND "${CMAKE_COMMAND}" --build "${CMAKE_BINARY_DIR}" --target peft_headers_alone --parallel 2)
set_tests_properties(headers_alone PROPERTIES LABELS compile RESOURCE_LOCK build_tree TIMEOUT 1200)
