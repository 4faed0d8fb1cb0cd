peft_add_test(golden_nf4 ${CMAKE_CURRENT_LIST_DIR}/nf4_golden_test.cpp ${CMAKE_CURRENT_LIST_DIR}/adamw8bit_golden_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/requantize_golden_test.cpp
  LABELS golden)
