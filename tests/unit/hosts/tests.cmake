add_library(peft_counted_memory OBJECT EXCLUDE_FROM_ALL ${CMAKE_CURRENT_LIST_DIR}/counted_memory.cpp)  # replaces operator new
target_include_directories(peft_counted_memory PRIVATE "${PROJECT_SOURCE_DIR}/tests")
target_compile_features(peft_counted_memory PUBLIC cxx_std_20)
peft_add_test(hosts ${CMAKE_CURRENT_LIST_DIR}/generate_test.cpp ${CMAKE_CURRENT_LIST_DIR}/llama_memory_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/llama_methods_test.cpp ${CMAKE_CURRENT_LIST_DIR}/model_files_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/weight_storage_test.cpp
  PROGRAM models LABELS unit LIBS peft_counted_memory ${PEFT_PCRE2} ${PEFT_UTF8PROC})
