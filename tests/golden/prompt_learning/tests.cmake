peft_add_test(prompt_learning ${CMAKE_CURRENT_LIST_DIR}/prompt_learning_test.cpp ${CMAKE_CURRENT_LIST_DIR}/virtual_tokens_test.cpp
              ${CMAKE_CURRENT_LIST_DIR}/prompt_gradient_test.cpp PROGRAM models LABELS unit golden gradient)
