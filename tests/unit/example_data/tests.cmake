peft_add_test(example_data ${CMAKE_CURRENT_LIST_DIR}/example_data_test.cpp LABELS unit)
