# One program, several copies of the library: translation units with different flags, shared objects, forked processes,
# and the order in which a program ends.
if(PEFT_SANITIZE MATCHES "address")
  return()  # every copy is seconds of compiling; children forked amid busy threads hang or report leaks at times
endif()
set(peft_link "${PROJECT_SOURCE_DIR}/tests/link")

function(peft_link_target name)
  target_link_libraries(${name} PRIVATE peft::peft)
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  peft_target_defaults(${name})
endfunction()

# -- flags: one object per set, all in one program
set(peft_units plain)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND peft_units avx2 haswell avx512 fastmath)
endif()
set(peft_flags_plain)
set(peft_flags_avx2 -mavx2)
set(peft_flags_haswell -march=haswell)
set(peft_flags_avx512 -mavx512f)
set(peft_flags_fastmath -ffast-math)
if(NOT "avx2" IN_LIST peft_units)
  return()
endif()
add_executable(link_flags "${peft_link}/flags_main.cpp")
peft_link_target(link_flags)
foreach(unit IN LISTS peft_units)
  add_library(link_unit_${unit} OBJECT "${peft_link}/unit.cpp")
  peft_link_target(link_unit_${unit})
  target_compile_definitions(link_unit_${unit} PRIVATE PEFT_UNIT=peft_unit_${unit})
  target_compile_options(link_unit_${unit} PRIVATE ${peft_flags_${unit}})
  target_sources(link_flags PRIVATE $<TARGET_OBJECTS:link_unit_${unit}>)
endforeach()
add_test(NAME link_flags COMMAND link_flags)
set_tests_properties(link_flags PROPERTIES LABELS link)
# Which instructions stand in which functions, and whose functions the linker may merge.
find_program(PEFT_OBJDUMP objdump)
find_program(PEFT_NM nm)
if(PEFT_OBJDUMP AND PEFT_NM AND NOT PEFT_SANITIZE)
  add_test(NAME link_symbols COMMAND "${CMAKE_COMMAND}" "-DOBJDUMP=${PEFT_OBJDUMP}" "-DNM=${PEFT_NM}"
    "-DPLAIN=$<TARGET_OBJECTS:link_unit_plain>"
    "-DOTHERS=$<TARGET_OBJECTS:link_unit_avx2>;$<TARGET_OBJECTS:link_unit_avx512>;$<TARGET_OBJECTS:link_unit_fastmath>"
    -P "${peft_link}/check_symbols.cmake")
  set_tests_properties(link_symbols PROPERTIES LABELS link)
endif()

# -- shared objects
foreach(visibility hidden default)
  add_library(link_plugin_${visibility} MODULE "${peft_link}/plugin.cpp")
  peft_link_target(link_plugin_${visibility})
  set_target_properties(link_plugin_${visibility} PROPERTIES CXX_VISIBILITY_PRESET ${visibility}
    VISIBILITY_INLINES_HIDDEN $<STREQUAL:${visibility},hidden>)
endforeach()
add_executable(link_plugins "${peft_link}/plugins_main.cpp")
peft_link_target(link_plugins)
target_link_libraries(link_plugins PRIVATE ${CMAKE_DL_LIBS})
foreach(threads 1 4)
  add_test(NAME link_plugins_${threads} COMMAND link_plugins $<TARGET_FILE:link_plugin_hidden>
    $<TARGET_FILE:link_plugin_default>)
  set_tests_properties(link_plugins_${threads} PROPERTIES LABELS link ENVIRONMENT "PEFT_NUM_THREADS=${threads}"
    TIMEOUT 300)
endforeach()

# -- processes
peft_add_test(link_process "${peft_link}/process_test.cpp" LABELS link)
set_tests_properties(link_process PROPERTIES ENVIRONMENT "PEFT_NUM_THREADS=4" TIMEOUT 300)
add_executable(link_ending "${peft_link}/ending_main.cpp")
peft_link_target(link_ending)
foreach(how return exit)
  add_test(NAME link_ending_${how} COMMAND link_ending ${how})
  # All destructors ran: two threads' ("thread-local"), those made after the pool and before it.
  set_tests_properties(link_ending_${how} PROPERTIES LABELS link ENVIRONMENT "PEFT_NUM_THREADS=4" TIMEOUT 60
    PASS_REGULAR_EXPRESSION "thread-local .*after-pool .*before-pool "
    FAIL_REGULAR_EXPRESSION "other bits;Segmentation;AddressSanitizer;Subprocess")
endforeach()
