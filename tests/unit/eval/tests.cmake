peft_add_test(eval ${CMAKE_CURRENT_LIST_DIR}/metrics_test.cpp ${CMAKE_CURRENT_LIST_DIR}/classification_test.cpp LABELS unit golden)
