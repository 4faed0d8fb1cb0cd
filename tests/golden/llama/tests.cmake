peft_add_test(llama ${CMAKE_CURRENT_LIST_DIR}/llama_test.cpp ${CMAKE_CURRENT_LIST_DIR}/smollm2_test.cpp
              ${CMAKE_CURRENT_LIST_DIR}/models_test.cpp PROGRAM models LABELS unit golden)
