peft_add_test(gradient_methods ${CMAKE_CURRENT_LIST_DIR}/lora_gradient_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/lora_family_gradient_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/adapter_gradient_test.cpp LABELS unit gradient)
