peft_add_test(gradient_train ${CMAKE_CURRENT_LIST_DIR}/linear_cross_entropy_test.cpp LABELS unit gradient)
