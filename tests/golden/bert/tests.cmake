peft_add_test(bert ${CMAKE_CURRENT_LIST_DIR}/bert_test.cpp LABELS unit golden)
