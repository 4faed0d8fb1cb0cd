peft_add_test(io
  ${CMAKE_CURRENT_LIST_DIR}/safetensors_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/gguf_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/atomic_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/mapped_file_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/mapped_file_guard_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/model_writer_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/paged_weights_test.cpp
  LABELS unit)
