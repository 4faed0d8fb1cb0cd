peft_add_test(methods
  ${CMAKE_CURRENT_LIST_DIR}/config_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/linear_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/adapter_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/family_test.cpp
  LABELS unit)
# A program of its own: ThreadSanitizer's lane builds it, and not the others.
peft_add_test(selections
  ${CMAKE_CURRENT_LIST_DIR}/registry_stress_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/family_stress_test.cpp
  LABELS unit)
