# The pages' C++ compiles: the blocks of a page, one after another, are one translation unit.
file(GLOB peft_pages CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/docs/*.md")
list(FILTER peft_pages EXCLUDE REGEX "/CUDA\\.md$")  # nvcc's: tests/cuda/proof
set(peft_page_sources)
foreach(page IN LISTS peft_pages)
  get_filename_component(name "${page}" NAME_WE)
  peft_code_of("${page}" code)
  if(code STREQUAL "")
    continue()
  endif()
  set(source "${CMAKE_CURRENT_BINARY_DIR}/docs/${name}.cpp")
  file(CONFIGURE OUTPUT "${source}" CONTENT "@code@" @ONLY)
  list(APPEND peft_page_sources "${source}")
endforeach()
add_library(peft_pages OBJECT EXCLUDE_FROM_ALL ${peft_page_sources})
target_link_libraries(peft_pages PRIVATE peft::peft)
target_include_directories(peft_pages PRIVATE "${PROJECT_SOURCE_DIR}/examples")
peft_target_defaults(peft_pages)
target_compile_options(peft_pages PRIVATE -fsyntax-only)
target_compile_definitions(peft_pages PRIVATE PEFT_SEPARATE_IMPLEMENTATION)  # is never linked
add_test(NAME pages_compile
  COMMAND "${CMAKE_COMMAND}" --build "${CMAKE_BINARY_DIR}" --target peft_pages --parallel 2)
set_tests_properties(pages_compile PROPERTIES LABELS compile RESOURCE_LOCK build_tree TIMEOUT 1200)
