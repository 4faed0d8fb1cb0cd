peft_add_test(adapter
  ${CMAKE_CURRENT_LIST_DIR}/adapter_test.cpp ${CMAKE_CURRENT_LIST_DIR}/composition_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/adapterhub_directory_test.cpp
  SEPARATE ${CMAKE_CURRENT_LIST_DIR}/adapter_memory_test.cpp  # replaces operator new
  LABELS unit)
