peft_add_test(data ${CMAKE_CURRENT_LIST_DIR}/data_test.cpp ${CMAKE_CURRENT_LIST_DIR}/classification_test.cpp LABELS unit)
