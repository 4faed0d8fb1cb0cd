peft_add_test(prompt_learning_units ${CMAKE_CURRENT_LIST_DIR}/prompt_methods_test.cpp ${CMAKE_CURRENT_LIST_DIR}/directory_test.cpp PROGRAM adapters LABELS unit)
