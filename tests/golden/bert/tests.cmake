peft_add_test(bert ${CMAKE_CURRENT_LIST_DIR}/bert_test.cpp ${CMAKE_CURRENT_LIST_DIR}/minilm_test.cpp ${CMAKE_CURRENT_LIST_DIR}/bert_methods_test.cpp PROGRAM models LABELS unit golden
  LIBS ${PEFT_PCRE2} ${PEFT_UTF8PROC})
