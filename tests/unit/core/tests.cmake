peft_add_test(core
  ${CMAKE_CURRENT_LIST_DIR}/scalar_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/rng_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/executor_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/buffer_test.cpp
  LABELS unit)
