add_test(NAME layers
  COMMAND "${CMAKE_COMMAND}" -DROOT=${PROJECT_SOURCE_DIR} -P "${CMAKE_CURRENT_LIST_DIR}/check_layers.cmake")
# The checker sees a wrong edge: a small tree that has one of each kind.
add_test(NAME layers_sees_wrong_edges
  COMMAND "${CMAKE_COMMAND}" -DROOT=${CMAKE_CURRENT_LIST_DIR}/wrong_tree -P "${CMAKE_CURRENT_LIST_DIR}/check_layers.cmake")
set_tests_properties(layers_sees_wrong_edges PROPERTIES PASS_REGULAR_EXPRESSION
  "core/up.hpp -> kernels/k.hpp: room 'core' may not include room 'kernels'.*core/uses_cuda.hpp -> cuda/kernels.*host_like.cuh -> core/up.hpp.*10 wrong edges")
set_tests_properties(layers layers_sees_wrong_edges PROPERTIES LABELS unit)
