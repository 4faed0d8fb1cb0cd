peft_add_test(gpt2 ${CMAKE_CURRENT_LIST_DIR}/gpt2_test.cpp LABELS unit golden)
