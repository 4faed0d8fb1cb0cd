peft_add_test(hosts ${CMAKE_CURRENT_LIST_DIR}/generate_test.cpp ${CMAKE_CURRENT_LIST_DIR}/llama_memory_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/llama_methods_test.cpp ${CMAKE_CURRENT_LIST_DIR}/model_files_test.cpp ${CMAKE_CURRENT_LIST_DIR}/weight_storage_test.cpp
  SEPARATE ${CMAKE_CURRENT_LIST_DIR}/counted_memory.cpp  # replaces operator new
  LABELS unit LIBS ${PEFT_PCRE2} ${PEFT_UTF8PROC})
