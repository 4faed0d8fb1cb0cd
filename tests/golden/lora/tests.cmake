peft_add_test(golden_lora ${CMAKE_CURRENT_LIST_DIR}/lora_golden_test.cpp PROGRAM adapters LABELS golden)
