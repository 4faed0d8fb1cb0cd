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
# A header that reaches one of `peft_header_starts` through its own includes starts from that one precompiled, which spares two
# thirds of the time and gives it nothing that it does not include itself. Later ones win.
set(peft_header_starts peft/error.hpp peft/linear.hpp peft/lora.hpp peft/named_adapter.hpp peft/io/json.hpp
  peft/checkpoint/config_reader.hpp)
file(GLOB_RECURSE peft_headers RELATIVE "${PROJECT_SOURCE_DIR}/include" CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/include/peft/*.hpp")
list(FILTER peft_headers EXCLUDE REGEX "^peft/cuda/")  # those need the CUDA Toolkit
file(GLOB_RECURSE peft_example_headers RELATIVE "${PROJECT_SOURCE_DIR}/examples" CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/examples/hosts/*.hpp")
list(APPEND peft_headers ${peft_example_headers})

# peft_reach(result header): what of `peft_headers` it includes, directly or not. A global property keeps each answer.
function(peft_reach result header)
  get_property(known GLOBAL PROPERTY "peft_reach_${header}" SET)
  if(NOT known)
    set_property(GLOBAL PROPERTY "peft_reach_${header}" "")  # two that include each other end here
    set(folder "${PROJECT_SOURCE_DIR}/examples")
    if(header MATCHES "^peft/")
      set(folder "${PROJECT_SOURCE_DIR}/include")
    endif()
    file(STRINGS "${folder}/${header}" lines REGEX "^#include \"")
    set(all)
    foreach(line IN LISTS lines)
      string(REGEX REPLACE "^#include \"(.*)\".*" "\\1" included "${line}")
      if(included IN_LIST peft_headers)
        peft_reach(further "${included}")
        list(APPEND all "${included}" ${further})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES all)
    set_property(GLOBAL PROPERTY "peft_reach_${header}" "${all}")
  endif()
  get_property(reached GLOBAL PROPERTY "peft_reach_${header}")
  set(${result} "${reached}" PARENT_SCOPE)
endfunction()

foreach(header IN LISTS peft_headers)
  string(MAKE_C_IDENTIFIER "${header}" unit)
  set(source "${CMAKE_CURRENT_BINARY_DIR}/headers_alone/${unit}.cpp")
  file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"@header@\"\n" @ONLY)
  peft_reach(reached "${header}")
  set(start nothing)
  foreach(candidate IN LISTS peft_header_starts)
    if(candidate IN_LIST reached)
      set(start "${candidate}")
    endif()
  endforeach()
  list(APPEND peft_start_at_${start} "${source}")
endforeach()
add_custom_target(peft_headers_alone)
foreach(start IN ITEMS nothing LISTS peft_header_starts)
  string(MAKE_C_IDENTIFIER "peft_headers_from_${start}" target)
  add_library(${target} OBJECT EXCLUDE_FROM_ALL ${peft_start_at_${start}})
  add_dependencies(peft_headers_alone ${target})
  target_link_libraries(${target} PRIVATE peft::peft)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/examples")
  peft_target_defaults(${target})
  target_compile_options(${target} PRIVATE -O0 -g0)
  # Never linked. The other way, everything inline, is the consumers'.
  target_compile_definitions(${target} PRIVATE PEFT_SEPARATE_IMPLEMENTATION)
  if(NOT start STREQUAL "nothing")
    target_precompile_headers(${target} PRIVATE "<${start}>")
    set_target_properties(${target} PROPERTIES CXX_COMPILER_LAUNCHER "")  # ccache does not know what a precompiled header holds
  endif()
endforeach()
add_test(NAME headers_alone
  COMMAND "${CMAKE_COMMAND}" --build "${CMAKE_BINARY_DIR}" --target peft_headers_alone --parallel 2)
set_tests_properties(headers_alone PROPERTIES LABELS compile RESOURCE_LOCK build_tree TIMEOUT 1200)
