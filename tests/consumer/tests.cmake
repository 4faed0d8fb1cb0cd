# A stranger's project with strict warnings as errors, against the installed package, the source folder,
# FetchContent and pkg-config.
find_program(PEFT_PKG_CONFIG pkg-config)
foreach(how installed subfolder fetchcontent pkgconfig)
  if(how STREQUAL pkgconfig AND NOT PEFT_PKG_CONFIG)
    continue()
  endif()
  add_test(NAME consumer_${how} COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}" "-DBUILD=${PROJECT_BINARY_DIR}"
    "-DWORK=${CMAKE_CURRENT_BINARY_DIR}/consumer_${how}" "-DCXX=${CMAKE_CXX_COMPILER}" "-DHOW=${how}"
    -P "${CMAKE_CURRENT_LIST_DIR}/run.cmake")
  set_tests_properties(consumer_${how} PROPERTIES LABELS consumer TIMEOUT 600)
endforeach()

# The Conan package, where conan is installed.
add_test(NAME consumer_conan COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}"
  "-DWORK=${CMAKE_CURRENT_BINARY_DIR}/consumer_conan" "-DCXX=${CMAKE_CXX_COMPILER}"
  -P "${CMAKE_CURRENT_LIST_DIR}/conan.cmake")
set_tests_properties(consumer_conan PROPERTIES LABELS consumer TIMEOUT 600 SKIP_REGULAR_EXPRESSION "^skipped")

# The vcpkg port, with stand-ins for vcpkg's helpers: its tool is not needed.
add_test(NAME consumer_vcpkg COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}"
  "-DWORK=${CMAKE_CURRENT_BINARY_DIR}/consumer_vcpkg" "-DCXX=${CMAKE_CXX_COMPILER}"
  -P "${CMAKE_CURRENT_LIST_DIR}/vcpkg/run.cmake")
set_tests_properties(consumer_vcpkg PROPERTIES LABELS consumer TIMEOUT 600)
