peft_add_test(checkpoint
  ${CMAKE_CURRENT_LIST_DIR}/lora_config_json_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/peft_directory_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/train_state_test.cpp
  PROGRAM adapters LABELS unit)
