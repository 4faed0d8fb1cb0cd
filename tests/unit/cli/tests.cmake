if(TARGET peft_program)
  find_package(CLI11 CONFIG REQUIRED)
  peft_add_test(cli ${CMAKE_CURRENT_LIST_DIR}/cli_test.cpp ${CMAKE_CURRENT_LIST_DIR}/models_test.cpp
    ${CMAKE_CURRENT_LIST_DIR}/truncated_model_test.cpp ${CMAKE_CURRENT_LIST_DIR}/methods_test.cpp
    ${CMAKE_CURRENT_LIST_DIR}/compare_test.cpp ${CMAKE_CURRENT_LIST_DIR}/classify_test.cpp
    ${CMAKE_CURRENT_LIST_DIR}/starts_test.cpp ${CMAKE_CURRENT_LIST_DIR}/quantize_test.cpp
    ${CMAKE_CURRENT_LIST_DIR}/synthetic_test.cpp
    SEPARATE $<TARGET_OBJECTS:peft_cli_models>
    LABELS unit LIBS ${PEFT_PCRE2} ${PEFT_UTF8PROC} CLI11::CLI11
                DEFINES PEFT_PROGRAM="$<TARGET_FILE:peft_program>")
  add_dependencies(test_cli peft_program)
endif()
