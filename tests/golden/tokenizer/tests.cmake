peft_add_test(tokenizer ${CMAKE_CURRENT_LIST_DIR}/tokenizer_test.cpp ${CMAKE_CURRENT_LIST_DIR}/wordpiece_test.cpp LABELS unit golden LIBS ${PEFT_PCRE2} ${PEFT_UTF8PROC})
