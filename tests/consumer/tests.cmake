# A stranger's project with strict warnings as errors, against the installed package, the source folder, and pkg-config.
find_program(PEFT_PKG_CONFIG pkg-config)
foreach(how installed subfolder pkgconfig)
  if(how STREQUAL pkgconfig AND NOT PEFT_PKG_CONFIG)
    continue()
  endif()
  add_test(NAME consumer_${how} COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}" "-DBUILD=${PROJECT_BINARY_DIR}"
    "-DWORK=${CMAKE_CURRENT_BINARY_DIR}/consumer_${how}" "-DCXX=${CMAKE_CXX_COMPILER}" "-DHOW=${how}"
    -P "${CMAKE_CURRENT_LIST_DIR}/run.cmake")
  set_tests_properties(consumer_${how} PROPERTIES LABELS consumer TIMEOUT 600)
endforeach()
