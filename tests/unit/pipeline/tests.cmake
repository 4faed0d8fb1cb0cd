peft_add_test(pipeline
  ${CMAKE_CURRENT_LIST_DIR}/registry_loader_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/trainer_checkpointing_test.cpp
  PROGRAM adapters LABELS unit)
