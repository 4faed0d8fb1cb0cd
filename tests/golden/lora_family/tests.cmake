peft_add_test(golden_lora_family
  ${CMAKE_CURRENT_LIST_DIR}/methods_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/relatives_test.cpp
  LIBS Eigen3::Eigen PROGRAM adapters LABELS golden)
