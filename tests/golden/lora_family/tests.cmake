peft_add_test(golden_lora_family
  ${CMAKE_CURRENT_LIST_DIR}/methods_test.cpp
  LABELS golden)
