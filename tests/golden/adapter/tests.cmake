peft_add_test(golden_adapter ${CMAKE_CURRENT_LIST_DIR}/adapter_golden_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/composition_golden_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/llama_adapters_test.cpp PROGRAM models LABELS golden)
