peft_add_test(gradient_hosts ${CMAKE_CURRENT_LIST_DIR}/llama_gradient_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/llama_adapter_gradient_test.cpp PROGRAM models LABELS unit gradient)
