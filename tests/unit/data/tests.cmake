peft_add_test(data ${CMAKE_CURRENT_LIST_DIR}/data_test.cpp LABELS unit)
