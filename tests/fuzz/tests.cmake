# One program per reader of files that strangers write. Everywhere: its corpus is replayed. With PEFT_FUZZ (preset sanitize,
# clang): libFuzzer looks for more, for PEFT_FUZZ_SECONDS in a test, from a fixed seed, so that a change is judged by what
# it changed; by hand as long as one likes and from any seed.
if(PEFT_SANITIZE AND NOT PEFT_FUZZ)
  return()  # libFuzzer replays the corpora under the sanitizers
endif()
file(GLOB peft_fuzz_targets CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/targets/*.cpp")
add_custom_target(fuzz)
foreach(source IN LISTS peft_fuzz_targets)
  get_filename_component(target "${source}" NAME_WE)
  add_executable(fuzz_${target} "${source}")
  target_link_libraries(fuzz_${target} PRIVATE peft::peft peft_implementation ${PEFT_PCRE2} ${PEFT_UTF8PROC})
  target_include_directories(fuzz_${target} PRIVATE "${PROJECT_SOURCE_DIR}/tests" "${PROJECT_SOURCE_DIR}/examples")
  peft_target_defaults(fuzz_${target})
  add_dependencies(fuzz fuzz_${target})
  set(corpus "${CMAKE_CURRENT_LIST_DIR}/corpus/${target}")
  if(PEFT_FUZZ)
    target_compile_options(fuzz_${target} PRIVATE -fsanitize=fuzzer)
    target_link_options(fuzz_${target} PRIVATE -fsanitize=fuzzer)
    set(found "${CMAKE_CURRENT_BINARY_DIR}/fuzz/${target}")
    file(MAKE_DIRECTORY "${found}")
    add_test(NAME fuzz_${target} COMMAND fuzz_${target} -seed=1 -max_total_time=${PEFT_FUZZ_SECONDS} -timeout=20
      -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 "-artifact_prefix=${found}/" "${found}" "${corpus}")
  else()
    target_sources(fuzz_${target} PRIVATE "${CMAKE_CURRENT_LIST_DIR}/replay.cpp")
    add_test(NAME fuzz_${target} COMMAND fuzz_${target} "${corpus}")
  endif()
  set_tests_properties(fuzz_${target} PROPERTIES LABELS fuzz TIMEOUT 600)
endforeach()
